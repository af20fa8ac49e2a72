"""Graphs that probing amends step by step equal graphs of a new analysis with the same amendments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from zoo import NETWORKS

import proxyprune as pp
from proxyprune.coupling.groups import Member
from proxyprune.coupling.options import Amendments, Options
from proxyprune.graph.build import analyse, completed, regrouped
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.tracing.capture import capture


def content(graph: ModelGraph) -> list[Any]:
    """List everything in a graph that a ranking, a plan, a cut or a text depends on."""
    groups = [
        (group.id, group.pinned, group.step, group.floor, group.bins, group.blocks, [_member(member) for member in group.members])
        for group in graph.groups
    ]
    coupling = graph.coupling
    outcomes = [
        (node.name, outcome.zero, outcome.known, outcome.costed, _plain(outcome.outputs), _plain(outcome.sizes), str(outcome.macs))
        for of_call in (coupling.outcomes, *coupling.further)
        for node, outcome in of_call.items()
    ]
    paths = [(block, [str(path) for path in found]) for block, found in graph.residual_paths.items()]
    costs = [graph.macs, graph.params, graph.unsupported_ops, graph.uncosted_ops, graph.unreached, graph.notes]
    return [groups, outcomes, coupling.classes.of.tolist(), coupling.classes.reasons, paths, costs, graph.to_dict(), graph.to_text()]


def _member(member: Member) -> tuple[str, int, list[int]]:
    return member.parameter, member.dim, member.positions.tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else str(value)


def amendments_of(graph: ModelGraph) -> Iterator[Amendments]:
    """Yield pins that accumulate, a tie beside them, the tie alone, a single pin, and nothing."""
    keys = [f"{group.members[0].parameter}:{group.members[0].dim}" for group in graph.prunable]
    pins: dict[str, str] = {}
    for key in keys[:: max(1, len(keys) // 3)]:
        pins[key] = f"is pinned at {key}"
        yield Amendments(pins=dict(pins))
    width = {key: graph.program.shapes[key.rpartition(":")[0]][int(key.rpartition(":")[2])] for key in keys}
    ties = tuple(pair for pair in itertools.combinations(keys, 2) if width[pair[0]] == width[pair[1]])[:1]
    yield Amendments(pins=dict(pins), ties=ties)
    yield Amendments(ties=ties)
    yield Amendments(pins={keys[-1]: "is the last one"})
    yield Amendments()


SMALL = [name for name, network in NETWORKS.items() if "large" not in network.tags]


@pytest.mark.parametrize("name", SMALL[::3])
def test_each_amended_graph_equals_a_new_one(name: str) -> None:
    """Every third network of the zoo: after each of several amendments, groups, sizes, pins, blocks, cost and text are equal."""
    network = NETWORKS[name]
    model = network.build()
    program = capture(model, network.inputs())
    graph = analyse(model, program, Options(), Amendments())
    for amendments in amendments_of(graph):
        graph = regrouped(model, graph, amendments)
        assert content(completed(model, graph)) == content(analyse(model, program, Options(), amendments))


def dpt() -> tuple[nn.Module, Any]:
    """Depth estimation with a transformer backbone: several groups are pinned one after the other."""
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=36,
        image_size=32,
        patch_size=16,
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )
    return transformers.DPTForDepthEstimation(config), torch.zeros(1, 3, 32, 32)


def levit() -> tuple[nn.Module, Any]:
    """Attention whose widths follow from each other by the code of the forward."""
    config = transformers.LevitConfig(
        image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[2, 3, 4], depths=[2, 3, 2], key_dim=[8, 8, 8]
    )
    return transformers.LevitForImageClassification(config), torch.zeros(1, 3, 64, 64)


class ConstantHeads(nn.Module):
    """Layers that write different numbers of heads and widths as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 72) for _ in range(4))
        self.out = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for number, (qkv, out) in enumerate(zip(self.layers, self.out, strict=True)):
            heads = (4, 2, 3, 6)[number]
            q, k, v = (part.view(*x.shape[:2], heads, -1).transpose(1, 2) for part in qkv(x).chunk(3, -1))
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + out(y.reshape(*x.shape[:2], 24 if number % 2 else -1))
        return x


def zoo(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    """Return a maker of a network of the zoo and its inputs."""
    return lambda: (NETWORKS[name].build(), NETWORKS[name].inputs())


PROBED = {
    "dpt": dpt,
    "levit": levit,
    "constant heads": lambda: (ConstantHeads(), torch.zeros(1, 5, 24)),
    **{name: zoo(name) for name in ("pixart", "segformer", "fused_qkv_vit", "constant_heads")},
}


@pytest.mark.parametrize("name", PROBED)
def test_a_probed_graph_equals_a_new_one(name: str) -> None:
    """The amendments that probing finds, one after the other, give the graph of an analysis that begins with all of them."""
    model, inputs = PROBED[name]()
    graph = pp.trace(model.eval(), inputs)
    assert graph.amendments
    assert content(graph) == content(analyse(model, graph.program, graph.options, graph.amendments))


def test_the_comparison_sees_a_pin_that_is_left_out() -> None:
    """Graphs with different amendments have different content, also where only the reason of a pin differs."""
    model, inputs = PROBED["constant_heads"]()
    graph = pp.trace(model, inputs)
    (key, *_) = graph.amendments.pins
    fewer = replace(graph.amendments, pins={other: why for other, why in graph.amendments.pins.items() if other != key})
    other = replace(graph.amendments, pins={**graph.amendments.pins, key: "for another reason"})
    for amendments in (fewer, other):
        assert content(graph) != content(completed(model, regrouped(model, graph, amendments)))
