"""Compensation never makes the held-out measure worse, leaves the caller's things alone, and says what it did and did not do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from dropped import noise, without
from torch import Tensor, nn
from torch.nn import functional

import proxyprune as pp
from proxyprune.errors import InputError, MissingNeedError


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24, bias=bias), nn.ReLU(), nn.Linear(24, 4, bias=bias))
    return nn.Sequential(*layers).double().eval()


EXAMPLE = torch.zeros(1, 6, dtype=torch.float64)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Return True if two networks have the same tensors, bit for bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def pruned(model: nn.Module) -> pp.PruneResult:
    return pp.prune(model, EXAMPLE, 0.5)


class TestGuard:
    """What held-out batches do not confirm is undone."""

    def test_helps_and_says_so(self):
        """A network with redundant channels gets nearer to the unpruned one, and the report holds both figures."""
        model = network()
        result = pruned(model)
        fixed = pp.compensate(result, model, noise(64, 6))
        report = fixed.report.compensation
        assert report.accepted
        assert report.after < 0.7 * report.before
        assert set(report.refitted) == {"2", "4"}
        assert all(entry.error_after < entry.error_before for entry in report.layers)
        assert fixed.report.notes[-1].startswith("Compensation refitted 2 of 2 layers")
        (value,) = noise(256, 6, count=1, seed=9)
        wanted = model(value)
        assert (fixed.model(value) - wanted).norm() < (result.model(value) - wanted).norm()

    def test_independent_channels_cannot_be_replaced(self):
        """Kept channels that say nothing about the dropped ones are no help; the network stays bit for bit as cut."""
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)).double().eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(6))
        result = without(model, EXAMPLE, "0", {0, 3})
        fixed = pp.compensate(result, model, noise(32, 6))
        assert same(fixed.model, result.model)
        assert not fixed.report.compensation.accepted
        assert fixed.report.compensation.after == fixed.report.compensation.before

    def test_loss_that_gets_worse_undoes_everything(self):
        """When the loss on held-out batches rises although every layer's error falls, no weight changes."""
        model = network()
        result = pruned(model)

        reference = network()

        def contrary(candidate: nn.Module, batch: Tensor) -> Tensor:
            return -(candidate(batch) - reference(batch)).square().mean()

        fixed = pp.compensate(result, model, noise(64, 6), contrary)
        report = fixed.report.compensation
        assert same(fixed.model, result.model)
        assert not report.accepted
        assert report.refitted == ()
        assert report.tried > report.before == report.after
        assert "did not help" in fixed.report.notes[-1]

    def test_one_round_on_the_cut_network_is_not_enough(self):
        """Layers that are solved at once, from inputs that nobody repaired, correct the same error twice; the guard sees it."""
        model = network()
        settings = pp.CompensationSettings(sources=("pruned",))
        report = pp.compensate(pruned(model), model, noise(64, 6), settings=settings).report.compensation
        assert report.tried > report.before
        assert not report.accepted

    def test_second_round(self):
        """A second round, on the inputs of the cut network, is kept if it is better; the result is never worse than one round."""
        model = network()
        result = pruned(model)
        once, twice = (
            pp.compensate(result, model, noise(64, 6), settings=pp.CompensationSettings(sources=sources)).report.compensation
            for sources in (("dense",), ("dense", "pruned"))
        )
        assert twice.passes == 2
        assert twice.after <= once.after < once.before

    def test_norm_statistics_are_estimated_again(self):
        """Wrong running statistics are replaced where that helps, and the buffers keep the new values."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        model.double().train()
        batches = noise(16, 3, 8, 8)
        for batch in batches * 20:
            model(batch)
        model.eval()
        result = pp.prune(model, batches[0][:1], 0.4, keep=("5",))
        fixed = pp.compensate(result, model, batches)
        report = fixed.report.compensation
        assert report.after <= report.before
        if report.norms:
            assert not torch.equal(fixed.model[3].running_var, result.model[3].running_var)


class TestCallersThings:
    """Only the returned network changes."""

    def test_nothing_of_the_caller_changes(self):
        """Model, result, modes, hooks and generators are as before."""
        model = network().train()
        result = pruned(model)
        before = [{name: tensor.clone() for name, tensor in net.state_dict().items()} for net in (model, result.model)]
        generator = torch.get_rng_state()
        fixed = pp.compensate(result, model, noise(64, 6))
        for net, state in zip((model, result.model), before, strict=True):
            assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())
            assert net.training
            assert not any(module._forward_hooks for module in net.modules())
        assert torch.equal(torch.get_rng_state(), generator)
        assert fixed.plan is result.plan
        assert fixed.surgery is result.surgery
        assert result.report.compensation is None

    def test_same_bits_twice(self):
        """The same call gives the same weights and the same report."""
        model = network()
        result = pruned(model)
        first, second = (pp.compensate(result, model, noise(64, 6)) for _ in range(2))
        assert same(first.model, second.model)
        assert first.report.compensation == second.report.compensation

    def test_inplace(self):
        """With inplace the result's own network changes, to the same weights as a copy."""
        model = network()
        result = pruned(model)
        copy = pp.compensate(result, model, noise(64, 6))
        fixed = pp.compensate(result, model, noise(64, 6), inplace=True)
        assert fixed.model is result.model
        assert same(fixed.model, copy.model)

    def test_in_one_call(self):
        """`prune(compensate=True)` is the same as both calls, and with inplace it is the caller's own module."""
        model, batches = network(), noise(64, 6)
        both = pp.compensate(pruned(model), model, batches)
        once = pp.prune(model, EXAMPLE, 0.5, batches=batches, compensate=True)
        assert same(once.model, both.model)
        own = pp.prune(model, EXAMPLE, 0.5, batches=batches, compensate=True, inplace=True)
        assert own.model is model
        assert same(model, both.model)

    def test_failing_loss_leaves_the_weights(self):
        """When the loss raises at the end, an in-place compensation leaves the network as it was."""
        model, calls = network(), []
        result = pruned(model)
        before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}

        def failing(candidate: nn.Module, batch: Tensor) -> Tensor:
            calls.append(0)
            if len(calls) > 12:
                raise RuntimeError("the disk is full")
            return candidate(batch).square().mean()

        with pytest.raises(InputError, match="the disk is full"):
            pp.compensate(result, model, noise(64, 6), failing, inplace=True)
        assert all(torch.equal(result.model.state_dict()[name], tensor) for name, tensor in before.items())


class TestMemory:
    """Sums stay within the buffer."""

    @pytest.mark.parametrize(("buffer_bytes", "passes"), [(1 << 30, 1), (1, 2)])
    def test_buffer(self, buffer_bytes, passes):
        """A small buffer needs more runs of the networks, and yields as good a network."""
        model = network()
        settings = pp.CompensationSettings(buffer_bytes=buffer_bytes)
        fixed = pp.compensate(pruned(model), model, noise(64, 6), settings=settings)
        report = fixed.report.compensation
        assert report.passes == passes
        assert report.after < 0.7 * report.before
        assert passes > 1 or report.buffer_bytes <= buffer_bytes


class TestRejected:
    """Arguments that cannot work are named."""

    @pytest.mark.parametrize("batches", [None, EXAMPLE])
    def test_no_list(self, batches):
        """No batches, or one bare batch, is an error before anything is scored."""
        with pytest.raises(MissingNeedError, match="list of calibration batches"):
            pp.prune(network(), EXAMPLE, 0.5, batches=batches, compensate=True)

    @pytest.mark.parametrize("wrong", [{"sources": ()}, {"sources": ("sparse",)}, {"waves": 0}, {"buffer_bytes": 0}])
    def test_settings(self, wrong):
        """Settings that cannot work are an error when they are made."""
        with pytest.raises(InputError, match="Expected"):
            pp.CompensationSettings(**wrong)

    def test_one_batch(self):
        """One batch cannot be split in two halves."""
        model = network()
        with pytest.raises(MissingNeedError, match="at least two calibration batches, found 1"):
            pp.compensate(pruned(model), model, noise(4, 6, count=1))

    def test_pruned_model_in_place_of_the_unpruned(self):
        """The pruned network cannot stand for the unpruned one."""
        model = network()
        result = pruned(model)
        with pytest.raises(InputError, match=r"needs the unpruned model: expected '0\.weight' with shape"):
            pp.compensate(result, result.model, noise(4, 6))

    def test_batches_that_the_network_does_not_take(self):
        """A batch with labels needs a loss; the message says so."""
        model = network()
        batches = [(batch, torch.zeros(4)) for batch in noise(4, 6)]
        with pytest.raises(InputError, match="need loss_fn"):
            pp.compensate(pruned(model), model, batches)


class _Standardised(nn.Linear):
    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(value, self.weight / self.weight.norm(dim=0), self.bias)


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 24)
        self.weight = nn.Parameter(torch.randn(4, 24) / 5)

    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(self.first(value).relu(), self.weight)


class TestSkipped:
    """Layers that cannot be refitted are listed with the reason, and left alone."""

    def test_other_product(self):
        """A subclass that computes something else than its class is found by running it."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), _Standardised(24, 4)).double().eval()
        result = without(model, EXAMPLE, "0", range(12))
        report = pp.compensate(result, model, noise(8, 6)).report.compensation
        assert dict(report.skipped) == {"2": "it computes something else than its class"}

    def test_parameter_without_a_layer(self):
        """A parameter that the forward multiplies itself is named."""
        torch.manual_seed(0)
        model = _Functional().double().eval()
        result = pp.prune(model, EXAMPLE, 0.5)
        fixed = pp.compensate(result, model, noise(8, 6))
        assert list(fixed.report.compensation.skipped) == ["weight"]
        assert same(fixed.model, result.model)
        assert "found no layer" in fixed.report.notes[-2]

    def test_shared_weight(self):
        """A weight that two layers share stays, because the other layer reads it too."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
        model.double().eval()
        model[4].weight = model[2].weight
        result = pp.prune(model, EXAMPLE, 0.6)
        report = pp.compensate(result, model, noise(8, 6)).report.compensation
        assert "shared with another layer" in report.skipped["2"]
        assert report.refitted == ("6",)


def test_saved_and_reported(tmp_path):
    """The saved folder holds the figures, its report shows them, and the network that is loaded is the refitted one."""
    from proxyprune.reporting import write_report

    model = network()
    fixed = pp.compensate(pruned(model), model, noise(64, 6))
    pp.save(fixed, tmp_path / "net")
    stored = json.loads((tmp_path / "net" / "report.json").read_text())["compensation"]
    assert stored["after"] == fixed.report.compensation.after
    assert [entry["layer"] for entry in stored["layers"]] == ["2", "4"]
    assert same(pp.load(tmp_path / "net", network), fixed.model)
    page = write_report(tmp_path / "net", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "the refitted weights were kept" in page


def test_measure_that_is_not_finite_can_be_saved(tmp_path):
    """A loss that is infinite becomes null in the files, and is never better."""
    model = network()
    fixed = pp.compensate(pruned(model), model, noise(64, 6), lambda net, batch: net(batch).sum() * torch.inf)
    pp.save(fixed, tmp_path / "net")
    assert json.loads((tmp_path / "net" / "report.json").read_text())["compensation"]["before"] is None
    assert not fixed.report.compensation.accepted
    assert replace(fixed.report.compensation, layers=()).notes
