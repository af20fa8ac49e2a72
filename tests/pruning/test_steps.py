"""Cuts in several steps are one plan for the unpruned network, and the loss before and after is reported."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError, MissingNeedError
from proxyprune.pruning.progressive import budgets
from proxyprune.scoring import Ranking
from proxyprune.testing import attention_network, residual_network

NETWORKS = ("ddpm_unet", "llama_gqa", "vit", "dense_concat", "grouped_conv", "channel_shuffle")


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    return zoo.to_tensors(zoo.run(model, inputs))


class Recording:
    """Magnitude, with the parameters of every network that it is asked about."""

    name = "recording"
    needs = frozenset({"weights"})

    def __init__(self) -> None:
        self.params: list[int] = []

    def score(self, graph: pp.ModelGraph, context: pp.ScoringContext) -> Ranking:
        self.params.append(graph.params)
        return pp.score(graph, "magnitude", model=context.model)


class TestPlan:
    """The result is expressed against the unpruned network."""

    @pytest.mark.parametrize("name", NETWORKS)
    def test_one_plan_does_what_the_steps_did(self, name):
        """The plan, applied to the unpruned network at once, gives the same network as the steps, within the budget."""
        network = zoo.NETWORKS[name]
        model, inputs = network.build(), network.inputs()
        result = pp.prune(model, inputs, 0.5, steps=3)
        again = pp.apply_plan(model, result.plan, inputs)
        assert all(torch.equal(a, b) for a, b in zip(outputs(result.model, inputs), outputs(again, inputs), strict=True))
        assert result.plan.macs <= result.plan.target_macs <= 0.5 * result.plan.base_macs
        assert result.plan.base_macs == pp.trace(model, inputs, probe=False).macs
        assert result.plan.options["steps"] == 3
        assert pp.trace(result.model, inputs, probe=False).macs == result.plan.macs

    def test_scored_before_each_cut(self):
        """The scorer sees the network that the last step left, each a third of the way in equal ratios."""
        network = residual_network()
        scorer = Recording()
        result = pp.prune(network.model, network.example_inputs, 0.4, scorer, steps=3, metric="params")
        shares = [params / result.plan.base_params for params in scorer.params]
        assert shares == pytest.approx([1.0, 0.4 ** (1 / 3), 0.4 ** (2 / 3)], abs=0.02)
        assert budgets(1000, 125, 3) == (500, 250, 125)

    def test_saved_and_loaded(self, tmp_path):
        """A folder of a result in steps loads as any other, with the refitted weights."""
        network = attention_network()
        result = pp.prune(network.model, network.example_inputs, 0.5, "taylor", steps=2, mode="both", **data(network))
        pp.save(result, tmp_path / "small")
        loaded = pp.load(tmp_path / "small", lambda: copy.deepcopy(network.model))
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), result.model.state_dict().values(), strict=True))
        assert pp.PrunePlan.from_json(tmp_path / "small" / "plan.json") == result.plan

    def test_one_step_is_the_plain_cut(self):
        """steps=1 changes nothing."""
        network = residual_network()
        plain, one = (pp.prune(network.model, network.example_inputs, 0.5, **extra) for extra in ({}, {"steps": 1}))
        assert plain.plan == one.plan

    def test_removed_blocks_add_up(self):
        """Mode depth removes blocks in one step after the other, and the plan has them all."""
        network = zoo.NETWORKS["vit"]
        model, inputs = network.build(), network.inputs()
        result = pp.prune(model, inputs, 0.55, steps=2, mode="depth")
        assert result.plan.removed_blocks
        assert result.plan.kept == {}
        assert result.plan.macs <= 0.55 * result.plan.base_macs

    def test_inplace(self):
        """With inplace the caller's model is the pruned one."""
        network = residual_network()
        wanted = pp.prune(network.model, network.example_inputs, 0.5, steps=2)
        model = copy.deepcopy(network.model)
        result = pp.prune(model, network.example_inputs, 0.5, steps=2, inplace=True)
        assert result.model is model
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), wanted.model.state_dict().values(), strict=True))


class TestLimits:
    """Limits hold for the unpruned network's widths."""

    def test_floors_ceilings_and_keep(self):
        """A floor of a half is a half of the unpruned width after any number of steps; what is kept stays whole."""
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(5)))
        limits = {"floors": {"1": 0.5}, "ceilings": {"1.weight:0": 28}, "keep": ("3",)}
        result = pp.prune(model, torch.zeros(1, 32), 0.85, steps=3, metric="params", **limits)
        widths = {name: after for name, (_, after) in result.plan.widths.items()}
        assert widths.keys() <= {"0.weight:0", "1.weight:0"}  # layer 3 reads the third width, and is kept
        assert 16 <= widths["1.weight:0"] <= 28
        alone = pp.prune(model, torch.zeros(1, 32), 0.4, steps=3, metric="params", ceilings={"2.weight:0": 20})
        assert alone.plan.widths["2.weight:0"][1] <= 20

    def test_default_floor(self):
        """Without a floor a group keeps a tenth of its unpruned atoms, however many steps there are."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 8))
        with torch.no_grad():
            model[0].weight.mul_(1e-3)
        result = pp.prune(model, torch.zeros(1, 8), 0.15, steps=4)
        assert all(after >= 10 for _, after in result.plan.widths.values())

    @pytest.mark.parametrize("steps", [0, -1, 1.5, True])
    def test_no_number_of_steps(self, steps):
        """Only whole numbers from 1 up."""
        with pytest.raises(InputError, match="steps"):
            pp.prune(nn.Linear(4, 4), torch.zeros(1, 4), 0.5, steps=steps)


def data(network: object) -> dict[str, object]:
    return {"batches": list(network.batches) * 4, "loss_fn": network.loss_fn}


class TestLosses:
    """The loss at each stage."""

    def test_before_and_after(self):
        """With a loss, the report has the figures of the unpruned and of the pruned network, measured as anybody would."""
        network = residual_network()
        result = pp.prune(network.model, network.example_inputs, 0.5, "taylor", **data(network))
        losses = result.report.losses

        def mean(model: nn.Module) -> float:
            with torch.no_grad():
                return sum(float(network.loss_fn(model.eval(), batch)) for batch in data(network)["batches"]) / losses.batches

        assert (losses.measured_on, losses.batches) == ("calibration batches", 4 * len(network.batches))
        assert losses.unpruned == pytest.approx(mean(copy.deepcopy(network.model)), rel=1e-5)
        assert losses.cut == pytest.approx(mean(result.model), rel=1e-5)
        assert (losses.compensated, losses.recovered) == (None, None)
        assert result.report.to_dict()["losses"]["cut"] == losses.cut

    def test_recovery_lowers_the_loss(self):
        """Training after the cut sees none of the held-out batches and lowers the loss on them."""
        network = residual_network()
        result = pp.prune(
            network.model, network.example_inputs, 0.5, compensate=True, recover_steps=60, learning_rate=3e-3, **data(network)
        )
        losses = result.report.losses
        assert losses.measured_on == "held-out batches"
        assert losses.recovered < losses.compensated
        assert (losses.recover_steps, losses.learning_rate) == (60, 3e-3)
        assert any("held out for measuring" in note for note in result.report.notes)

    def test_training_between_the_steps(self):
        """With several steps the weights differ from those of the plan alone, and the updates add up to what was asked for."""
        network = residual_network()
        keywords = {**data(network), "steps": 2, "learning_rate": 1e-2}
        result = pp.prune(network.model, network.example_inputs, 0.5, "taylor", recover_steps=7, **keywords)
        untrained = pp.apply_plan(network.model, result.plan, network.example_inputs)
        weights = zip(result.model.parameters(), untrained.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in weights)
        assert result.report.losses.recover_steps == 7
        again = pp.prune(network.model, network.example_inputs, 0.5, "taylor", recover_steps=7, **keywords)
        assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))

    def test_held_out_batches_of_the_caller(self):
        """Given held-out batches, the loss is measured there, and scorers see all calibration batches."""
        network = residual_network()
        given = data(network)
        result = pp.prune(network.model, network.example_inputs, 0.5, **given, held_out=given["batches"][:1])
        assert (result.report.losses.measured_on, result.report.losses.batches) == ("held-out batches", 1)

    def test_loss_that_raises_does_not_undo_the_cut(self):
        """A loss that cannot be measured on the pruned network is a note."""
        network = residual_network()
        first = network.model.state_dict()

        def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
            model.load_state_dict(first)
            return network.loss_fn(model, batch)

        result = pp.prune(network.model, network.example_inputs, 0.5, batches=network.batches, loss_fn=loss_fn)
        assert result.report.losses.cut is None
        assert any("could not be measured" in note for note in result.report.notes)

    def test_recovery_without_a_loss(self):
        """There is nothing to train on."""
        network = residual_network()
        with pytest.raises(MissingNeedError, match="recover_steps"):
            pp.prune(network.model, network.example_inputs, 0.5, batches=network.batches, recover_steps=1)

    def test_report_page(self, tmp_path: Path):
        """The HTML report shows the loss at each stage."""
        from proxyprune.reporting import write_report

        network = residual_network()
        result = pp.prune(network.model, network.example_inputs, 0.5, recover_steps=2, **data(network))
        result = replace(result, report=replace(result.report, losses=replace(result.report.losses, recovered=0.125)))
        pp.save(result, tmp_path / "small")
        write_report(tmp_path / "small", tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "Loss before and after" in page
        assert "after 2 steps of training" in page
        assert "0.125" in page
