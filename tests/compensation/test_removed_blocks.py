"""The place of a removed block: layers before it are refitted to yield what it yielded, where that is exact and helps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dropped import noise
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.api import prune_ranked
from proxyprune.planning.request import PlanRequest


class PreNorm(nn.Module):
    """A feed-forward layer with a norm before it, added to its input."""

    def __init__(self, width: int = 8, *, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, 24, bias=bias), nn.Linear(24, width, bias=bias)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.down(torch.nn.functional.silu(self.up(self.norm(value))))


class Attending(nn.Module):
    """Self-attention of two heads with a norm before it, added to its input, and a feed-forward layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.second, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, value: Tensor) -> Tensor:
        turned = self.norm(value)
        heads = [layer(turned).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads)
        value = value + self.out(mixed.transpose(1, 2).flatten(-2))
        return value + self.down(self.up(self.second(value)).relu())


class PostNorm(nn.Module):
    """A feed-forward layer added to its input, and a norm of the sum."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, 24), nn.Linear(24, width), nn.LayerNorm(width)

    def forward(self, value: Tensor) -> Tensor:
        return self.norm(value + self.down(self.up(value).relu()))


class Residual(nn.Module):
    """The block of a ResNet."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, value: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(value)).relu())) + value).relu()


def stacked(make: Callable[[], nn.Module], *, images: bool = False) -> nn.Sequential:
    """Return a network of four blocks between a first and a last layer; batch norms have seen data."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1) if images else nn.Linear(5, 8)
    last = nn.Conv2d(8, 4, 1) if images else nn.Linear(8, 4)
    model = nn.Sequential(first, *(make() for _ in range(4)), last).double().train()
    with torch.no_grad():
        for batch in batches_for(model):
            model(batch)
    return model.eval()


def batches_for(model: nn.Sequential, seed: int = 1, count: int = 6) -> list[Tensor]:
    shape = (8, 3, 8, 8) if isinstance(model[0], nn.Conv2d) else (16, 12, 5)
    return noise(*shape, seed=seed, count=count)


def without_blocks(model: nn.Sequential, *blocks: str) -> pp.PruneResult:
    """Remove blocks and nothing else."""
    example = batches_for(model)[0][:1]
    graph = pp.trace(model, example)
    ranking = pp.Ranking({block.id: float(block.id not in blocks) for block in graph.blocks}, "chosen")
    request = PlanRequest.of(str(graph.cost.macs(graph.cost.full, blocks)), mode="depth")
    result = prune_ranked(model, example, graph, ranking, request)
    assert result.plan.removed_blocks == blocks
    return result


def distance(first: nn.Module, second: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((first(batch) - second(batch)).square().sum()) for batch in batches)


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], str, tuple[str, ...]]] = {
    "pre-norm": (lambda: stacked(PreNorm), "3", ("2.down",)),
    "attention": (lambda: stacked(Attending), "3", ("2.down",)),
    "post-norm": (lambda: stacked(PostNorm), "3", ("2.norm",)),
    "ResNet": (lambda: stacked(Residual, images=True), "3", ("2.conv2", "2.bn2")),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_layers_before_a_removed_block_do_what_it_did(kind):
    """The output on batches that the fit did not see gets nearer to the unpruned one, and the report names the layers."""
    make, block, layers = NETWORKS[kind]
    model = make()
    result = without_blocks(model, block)
    fixed = pp.compensate(result, model, batches_for(model))
    report = fixed.report.compensation
    assert report.accepted
    assert report.after < report.before
    assert set(report.substitutes[block]) <= set(layers)
    assert block not in report.skipped
    fresh = batches_for(model, seed=9)
    assert distance(fixed.model, model, fresh) < 0.9 * distance(result.model, model, fresh)
    assert fixed.model.state_dict().keys() == result.model.state_dict().keys()
    changed = {name for name, value in fixed.model.state_dict().items() if not torch.equal(value, result.model.state_dict()[name])}
    named = {name for name in changed if name.rpartition(".")[0] in layers or "running" in name}
    assert changed == named


def test_known_solution():
    """A block that adds a linear function of what a layer before it reads is made up for exactly, also two blocks at once."""

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, value: Tensor) -> Tensor:
            return value + self.linear(value)

    model = stacked(Adds)
    result = without_blocks(model, "2", "3")
    fixed = pp.compensate(result, model, batches_for(model))
    (value,) = batches_for(model, seed=9, count=1)
    with torch.no_grad():
        assert float((fixed.model(value) - model(value)).norm()) < 1e-3 * float((result.model(value) - model(value)).norm())
    assert set(fixed.report.compensation.substitutes) == {"2", "3"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_that_cannot_be_helped(kind):
    """If the loss rises with the refit, every weight stays bit for bit as it was cut, and the report gives the reason."""
    make, block, _ = NETWORKS[kind]
    model, reference = make(), make()
    result = without_blocks(model, block)

    def contrary(candidate: nn.Module, batch: Tensor) -> Tensor:
        return -(candidate(batch) - reference(batch)).square().mean()

    fixed = pp.compensate(result, model, batches_for(model), contrary)
    report = fixed.report.compensation
    before, after = result.model.state_dict(), fixed.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.rpartition(".")[0] in report.norms and "running" in name for name in changed)  # statistics have a guard of their own
    assert report.substitutes == {}
    assert "did not help" in report.skipped[block]
    assert report.refitted == ()


def test_first_block_has_no_layer_before_it():
    """A block whose input comes from the caller has no layer before it; the report says so, and nothing changes."""
    torch.manual_seed(0)
    model = nn.Sequential(PreNorm(), PreNorm(), PreNorm()).double().eval()
    batches = noise(16, 12, 8)
    graph = pp.trace(model, batches[0][:1])
    ranking = pp.Ranking({block.id: float(block.id != "0") for block in graph.blocks}, "chosen")
    request = PlanRequest.of(str(graph.cost.macs(graph.cost.full, ("0",))), mode="depth")
    result = prune_ranked(model, batches[0][:1], graph, ranking, request)
    fixed = pp.compensate(result, model, batches)
    before, after = result.model.state_dict(), fixed.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "no layer just before it" in fixed.report.compensation.skipped["0"]


def test_widths_and_blocks():
    """In mode "both" the layers before removed blocks are refitted after the readers, on the channels that stay."""
    model = stacked(PreNorm)
    example = batches_for(model)[0][:1]
    graph = pp.trace(model, example)
    ranking = pp.Ranking({block.id: float(block.id != "3") for block in graph.blocks}, "chosen")
    result = prune_ranked(model, example, graph, ranking, PlanRequest.of(0.5, mode="both"))
    assert result.plan.removed_blocks == ("3",)
    assert result.plan.kept
    report = pp.compensate(result, model, batches_for(model)).report.compensation
    assert report.accepted
    assert "2.down" in report.substitutes["3"]


def test_a_layer_that_lost_inputs_and_takes_the_place_of_a_block_keeps_both_refits():
    """Units leave "2.down", half of them constant, and block 3, which adds a constant, leaves too: both end in its bias."""
    model = stacked(PreNorm)
    with torch.no_grad():
        model[2].up.weight[12:] = 0.0
        model[2].up.bias[12:] = 3.0
        model[3].down.weight.zero_()
        model[3].down.bias.copy_(torch.linspace(1.0, 2.0, 8))
    batches = batches_for(model)
    kept = ("0", "1", "4", "5")
    result = pp.prune(model, batches[0][:1], 0.66, "obs", batches=batches, remove=("3",), keep=kept)
    assert result.plan.removed_blocks == ("3",)
    fixed = pp.compensate(result, model, batches)
    report = fixed.report.compensation
    assert report.substitutes["3"] == ("2.down",)
    assert {entry.layer: entry.refitted for entry in report.layers}["2.down"]
    with torch.no_grad():
        wanted, cut, found = (network(batches[-1]) for network in (model, result.model, fixed.model))
    assert float((found - wanted).abs().max()) < 0.2 * float((cut - wanted).abs().max())
