"""torch-pruning's criteria as scorers: its own code on our groups gives what it gives on its own groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError
from proxyprune.scoring import find
from proxyprune.testing import attention_network

CRITERIA = {
    "tp_magnitude": "GroupMagnitudeImportance",
    "tp_lamp": "LAMPImportance",
    "tp_fpgm": "FPGMImportance",
    "tp_bn_scale": "BNScaleImportance",
    "tp_taylor": "GroupTaylorImportance",
    "tp_hessian": "GroupHessianImportance",
    "tp_activation": "ActivationImportance",
}


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(inner + self.shortcut(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8, 8, 1), Residual(8, 16, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def plain() -> nn.Module:
    """Without batch norm, and with a flatten between convolution and linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


def seeded(build: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.uniform_(module.running_mean)
    return model


INPUT = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([1, 2, 3, 4])


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def own_importances(model: nn.Module, criterion: str, graph: pp.ModelGraph) -> dict[str, Tensor]:
    """Return what torch-pruning itself computes, on the groups of its dependency graph, as its documentation shows it."""
    importance = getattr(tp.importance, criterion)()
    dependencies = tp.DependencyGraph().build_dependency(model, INPUT[:1])
    if criterion == "ActivationImportance":
        with importance.compute_importance(model):
            model(INPUT)
    else:
        loss_of(model, (INPUT, LABELS)).backward()
    if criterion == "GroupHessianImportance":
        importance.accumulate_grad(model)
    found = {}
    for group in graph.prunable:
        layer = model.get_submodule(group.id.removesuffix(".weight:0"))
        function = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
        values = importance(dependencies.get_pruning_group(layer, function, list(range(group.width))))
        if values is not None:
            found[group.id] = values[: group.atoms].double()
    return found


@pytest.mark.parametrize("build", [resnet, plain])
@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_those_of_torch_pruning_on_its_own_groups(name: str, build: Any) -> None:
    """Where its dependency graph gives the same groups, every channel of every group has the same importance."""
    model = seeded(build)
    graph = pp.trace(model, INPUT[:1])
    ranking = pp.score(graph, name, model=model, batches=[(INPUT, LABELS)], loss_fn=loss_of)
    expected = own_importances(seeded(build), CRITERIA[name], graph)
    assert ranking.channel_scores.keys() == expected.keys()
    assert (name == "tp_bn_scale" and build is plain) == (not expected)
    for group, values in expected.items():
        torch.testing.assert_close(torch.tensor(ranking.channel_scores[group], dtype=torch.float64), values, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_mean_over_batches() -> None:
    """Two half batches give the Taylor scores of the whole one."""
    model = seeded(resnet)
    graph = pp.trace(model, INPUT[:1])
    halves = [(INPUT[:2], LABELS[:2]), (INPUT[2:], LABELS[2:])]
    one, two = (pp.score(graph, "tp_taylor", model=model, batches=b, loss_fn=loss_of) for b in ([(INPUT, LABELS)], halves))
    for group, values in one.channel_scores.items():
        assert two.channel_scores[group] == pytest.approx(values, rel=1e-3)


@pytest.mark.parametrize("name", ["tp_magnitude", "tp_taylor"])
def test_heads_can_be_cut_by_a_criterion_of_torch_pruning(name: str) -> None:
    """On attention, every head has one score, and the plan from them is applied and verified."""
    network = attention_network()
    result = pp.prune(network.model, network.example_inputs, 0.6, name, batches=network.batches, loss_fn=network.loss_fn)
    heads = [group for group in result.graph.prunable if group.atom_channels > 1]
    assert heads
    assert all(len(result.ranking.channel_scores[group.id]) == group.atoms for group in heads)
    assert result.plan.macs <= 0.6 * result.plan.base_macs


def test_groups_without_a_scored_layer_are_named() -> None:
    """Without batch norms `tp_bn_scale` scores nothing, says so, and planning falls back to blocks and magnitude."""
    model = seeded(plain)
    result = pp.prune(model, INPUT[:1], 0.6, "tp_bn_scale")
    assert not result.ranking.channel_scores
    assert "It scores no layer of 3 groups" in result.ranking.notes[-1]


def test_options_reach_the_criterion() -> None:
    """The options of torch-pruning's class are taken, and an unknown one is named with those that exist."""
    model = seeded(resnet)
    graph = pp.trace(model, INPUT[:1])
    plain_scores = pp.score(graph, "tp_magnitude", model=model, options={"p": 1, "normalizer": None}).channel_scores
    group = graph.prunable[0]
    first = model.get_submodule(group.members[0].parameter.rpartition(".")[0]).weight
    assert sum(plain_scores[group.id]) > float(first.detach().abs().sum()) / 10
    with pytest.raises(InputError, match=r"It takes: .*normalizer"):
        find("tp_magnitude", {"norm": 1})


def test_nothing_is_left_on_the_model() -> None:
    """Gradients, recorded activations and hooks are gone afterwards."""
    model = seeded(resnet)
    graph = pp.trace(model, INPUT[:1])
    for name in ("tp_taylor", "tp_activation"):
        pp.score(graph, name, model=model, batches=[(INPUT, LABELS)], loss_fn=loss_of)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("_importance" in module.__dict__ or module._forward_hooks for module in model.modules())
