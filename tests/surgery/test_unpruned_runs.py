"""Runs without data: as few as possible, and none more for a deeper network."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.surgery.attribute_evidence import evidence_for
from proxyprune.surgery.unpruned_runs import UnprunedRuns
from proxyprune.tracing.skeleton import EmptyTensors, skeleton

FORWARDS: Counter[str] = Counter()


class Attention(nn.Module):
    """Attention with a number of heads in an attribute, or as a constant."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.heads, self.fixed = 4, fixed
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        heads = 4 if self.fixed else self.heads
        q, k, v = self.qkv(x).view(1, 6, 3, heads, -1).permute(2, 0, 3, 1, 4)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 6, -1))


class Stack(nn.Module):
    """Counts its forwards, of its copies too."""

    def __init__(self, depth: int, fixed: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)
        self.layers = nn.ModuleList(Attention(fixed) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        FORWARDS["all"] += 1
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class Windows(nn.Module):
    """Writes numbers into a mask, as windowed attention does, by ops that depend on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((6, 6))
        for number, part in enumerate((slice(0, 2), slice(2, None))):
            mask[part, part] = number
        mask[0] = True
        return self.last(self.first(x) + mask.sum())


def forwards(depth: int, fixed: bool) -> tuple[int, int]:
    """Count the forwards of `pp.trace` and of `pp.prune`."""
    inputs, counts = torch.ones(1, 6, 8), []
    for step in (pp.trace, pp.prune):
        FORWARDS.clear()
        step(Stack(depth, fixed).eval(), inputs)
        counts.append(FORWARDS["all"])
    return counts[0], counts[1]


@pytest.mark.parametrize("fixed", [False, True])
def test_a_deeper_network_of_equal_layers_takes_no_more_runs(fixed: bool) -> None:
    """Attributes and pins that one layer needs are found once, for all layers."""
    assert forwards(9, fixed) == forwards(3, fixed)


def test_the_unpruned_forward_is_lined_up_once() -> None:
    """What the unpruned forward does without data is remembered, also if amendments follow."""
    model, inputs = Stack(2, True).eval(), torch.ones(1, 6, 8)
    (evidence,) = evidence_for(model, pp.trace(model, inputs), inputs)
    first = evidence.runs.lined_up(evidence.runs.meta)
    FORWARDS.clear()
    assert first.complete
    assert evidence.runs.lined_up(evidence.runs.meta) is first
    assert next(evidence.runs.ways) is evidence.runs.faithful is evidence.runs.meta
    assert not FORWARDS


def test_plans_use_the_evidence_of_the_trace() -> None:
    """It belongs to one model and its example inputs: others get their own."""
    model, inputs = Stack(2, False).eval(), torch.ones(1, 6, 8)
    graph = pp.trace(model, inputs)
    (evidence,) = evidence_for(model, graph, inputs)
    assert list(graph.program.evidence) == [model]
    amended = pp.trace(model, inputs, probe=False)
    assert evidence_for(model, replace(amended, program=graph.program), inputs) == (evidence,)
    assert evidence_for(model, amended, inputs) != (evidence,)
    assert evidence_for(Stack(2, False).eval(), graph, inputs) != (evidence,)
    assert evidence_for(model, graph, inputs.clone()) != (evidence,)


class Switch(nn.Module):
    """A width that the forward reads only if a flag is set."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.width, self.flag = nn.Linear(8, 32), nn.Linear(32, 4), 32, False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x.reshape(-1, self.width) if self.flag else x)


def test_evidence_follows_the_settings_of_the_model() -> None:
    """After a flag changed, a plan is applied as with a new trace: the width that is read now follows the cut."""
    model, inputs = Switch().eval(), torch.ones(2, 8)
    graph = pp.trace(model, inputs)
    plan = pp.make_plan(graph, pp.score(graph, "magnitude", model=model), 0.6)
    pp.apply_plan(model, plan, inputs, graph=graph)
    model.flag = True
    pruned = pp.apply_plan(model, plan, inputs, graph=graph)
    assert pruned.width == pruned.first.out_features < 32


def test_a_second_plan_takes_fewer_runs() -> None:
    """Applying a plan with the graph of a trace runs the pruned network, and not the unpruned one without data again."""
    model, inputs = Stack(2, False).eval(), torch.ones(1, 6, 8)
    graph = pp.trace(model, inputs)
    plan = pp.make_plan(graph, pp.score(graph, "magnitude", model=model), 0.6)
    counts = []
    for known in (True, False):
        if not known:
            graph.program.evidence.clear()
        FORWARDS.clear()
        pp.apply_plan(model, plan, inputs, graph=graph)
        counts.append(FORWARDS["all"])
    assert counts[0] < counts[1]


def test_a_graph_keeps_no_model_alive() -> None:
    """The evidence beside a program does not hold the model; a result's graph holds no example inputs either."""
    model, inputs = Stack(2, False).eval(), torch.ones(1, 6, 8)
    graph = pp.trace(model, inputs)
    assert graph.program.evidence
    result, gone = pp.prune(model, inputs, 0.6), (weakref.ref(model), weakref.ref(inputs))
    assert not result.graph.program.evidence
    kept = result.graph
    del model, inputs, graph, result
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert kept.prunable


def test_numbers_written_into_a_tensor_need_no_fake_tensors() -> None:
    """On the meta device such a forward makes the calls that it makes on the CPU."""
    model, inputs = Windows().eval(), torch.ones(1, 6, 8)
    runs = UnprunedRuns(model, pp.trace(model, inputs, probe=False), inputs)
    assert runs.lined_up(runs.meta).complete
    assert runs.lined_up(runs.meta).extra == frozenset()
    assert skeleton(model, EmptyTensors.meta()).first.weight.is_meta
