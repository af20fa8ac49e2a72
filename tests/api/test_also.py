"""Further example calls: what only they reach is cut along, and the pruned network does the right thing in every call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import succeed
from masking import randomise
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import ExampleInputsError, InputError, PlanMismatchError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """An auxiliary head in training, and a second branch that a flag turns on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.aux = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 4, 1))
        self.side = nn.Conv2d(16, 32, 1)

    def forward(self, x: Tensor, *, side: bool = False) -> Any:
        """Two outputs in training."""
        hidden = self.stem(x).relu()
        wide = self.body(hidden) + self.side(hidden) if side else self.body(hidden)
        out = self.head(wide.relu())
        return (out, self.aux(hidden)) if self.training else out


ALSO = [pp.TrainingCall(X), {"x": X, "side": True}]


def zeroed(model: nn.Module, result: pp.PruneResult) -> nn.Module:
    """Return the unpruned model with everything that was cut set to zero."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for cut in result.surgery.cuts:
            gone = sorted(set(range(cut.size)) - set(cut.kept))
            named[cut.parameter].movedim(cut.dim, 0)[gone] = 0
    return model


@pytest.mark.parametrize("inplace", [False, True])
def test_every_call_of_the_pruned_network_is_the_one_of_the_masked_network(*, inplace: bool) -> None:
    """In evaluation, with the side branch, and in training: the same as the unpruned network with zeros for what was cut."""
    model = randomise(Auxiliary()).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    result = pp.prune(model, X, target=0.5, also=ALSO, inplace=inplace)
    whole = Auxiliary()
    whole.load_state_dict(state)
    masked = zeroed(whole, result)
    cut = {change.parameter for change in result.surgery.cuts}
    assert {"stem.weight", "aux.0.weight", "side.weight", "body.weight"} <= cut
    for mode, inputs in (("eval", {}), ("eval", {"side": True}), ("train", {})):
        one, other = (getattr(network, mode)()(X, **inputs) for network in (result.model, masked))
        for found, expected in zip(one if isinstance(one, tuple) else (one,), other if isinstance(other, tuple) else (other,), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


def test_costs_are_those_of_the_first_call() -> None:
    """Further calls add constraints and no MACs; parameters are those of the whole model either way."""
    model = Auxiliary().eval()
    alone, together = pp.trace(model, X), pp.trace(model, X, also=ALSO)
    assert alone.macs == together.macs
    assert alone.params == together.params
    assert alone.unreached
    assert together.unreached == ()
    assert "stem.weight:0" in {group.id for group in together.prunable}
    assert "stem.weight:0" not in {group.id for group in alone.prunable}


def test_a_plan_is_applied_with_the_calls_that_it_was_made_with() -> None:
    """`apply_plan` traces the further calls too; without them the plan does not fit."""
    model = Auxiliary().eval()
    graph = pp.trace(model, X, also=ALSO)
    plan = pp.make_plan(graph, pp.score(graph, "magnitude", model=model), 0.5, model=model)
    pruned = pp.apply_plan(model, plan, X, also=ALSO)
    pruned.train()(X)
    with pytest.raises(PlanMismatchError):
        pp.apply_plan(model, plan, X)


def test_the_callers_model_is_as_before_a_training_call() -> None:
    """Running statistics do not move."""
    model = Auxiliary().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pp.prune(model, X, target=0.6, also=ALSO)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_call_that_raises_or_is_no_list_is_an_error() -> None:
    """One call without a list around it, and one that the model cannot take."""
    with pytest.raises(InputError, match=r"also=\[inputs\]"):
        pp.trace(Auxiliary(), X, also=X)  # type: ignore[arg-type]
    with pytest.raises(ExampleInputsError):
        pp.trace(Auxiliary(), X, also=[torch.zeros(1, 5, 8, 8)])


class Skipping(nn.Module):
    """Residual blocks, the second of which one of two calls needs for its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(3))
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, *, early: bool = False) -> Tensor:
        """Leave after two blocks, or not."""
        for block in self.blocks[: 2 if early else 3]:
            x = block(x)
        return self.last(x)


class Residual(nn.Module):
    """A block that can leave."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        """x + net(x)."""
        return x + self.net(x)


def test_removed_blocks_are_valid_for_calls_that_do_not_run_them() -> None:
    """A block that only the first call runs can leave; both calls run afterwards."""
    model = Skipping().eval()
    del model.inside
    x = torch.randn(2, 16)
    for target in (0.8, 0.5):
        result = pp.prune(model, x, target=target, mode="depth", also=[{"x": x, "early": True}])
        assert result.plan.removed_blocks
        result.model(x)
        result.model(x, early=True)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean square of the (first) output."""
    out = model(batch)
    return (out[0] if isinstance(out, tuple) else out).square().mean()


def test_search_and_compare_take_further_calls() -> None:
    """Both cut what only further calls reach, which stays whole without them, and measure pruned networks."""
    batches = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    given: dict[str, Any] = {"batches": batches, "held_out": batches[:1], "loss_fn": loss}
    model = Auxiliary().eval()
    found = pp.search(model, X, 0.5, "random", rounds=2, start="magnitude", also=ALSO, **given)
    assert {"aux.0.weight", "side.weight"} <= {cut.parameter for cut in found.surgery.cuts}
    found.model.train()(X)
    for also, unreached in ((ALSO, ()), ((), ("aux.0.weight",))):
        compared = pp.compare(model, X, ["magnitude"], targets=[0.7], seeds=[0], recovery=pp.Recovery(0), also=also, **given)
        assert compared.graph is not None
        assert set(unreached) <= set(compared.graph.unreached)
        assert bool(unreached) == bool(compared.graph.unreached)
        assert all(cell.error is None for cell in compared.cells if also)


MODEL_FILE = """
import torch
import proxyprune as pp
from test_also import Auxiliary


def build_model():
    return Auxiliary()


def example_inputs():
    return torch.zeros(1, 3, 8, 8)


def also_inputs():
    return [pp.TrainingCall(torch.zeros(2, 3, 8, 8)), {"x": torch.zeros(1, 3, 8, 8), "side": True}]
"""


def test_commands_read_further_calls_from_the_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prune` cuts the auxiliary head too, and a plan from there is replayed with the same calls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("net.py").write_text(MODEL_FILE, encoding="utf-8")
    succeed("prune", "-m", "net.py", "-t", "0.5", "--out", "small")
    small = pp.load("small", Auxiliary)
    assert small.aux[0].in_channels < 16
    small.train()(X)
    succeed("prune", "-m", "net.py", "-t", "0.5", "--plan-only", "--out", "plan.json")
    succeed("prune", "-m", "net.py", "--plan", "plan.json", "--out", "again")
    again = pp.load("again", Auxiliary)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in small.state_dict().items()
    }
