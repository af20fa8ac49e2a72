"""`trace`: read a model once, and probe what the ops alone do not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from proxyprune.analyse import analyse
from proxyprune.apply import attempt_surgery, blamed_groups
from proxyprune.errors import InputError
from proxyprune.graph import ChannelGroup, ModelGraph
from proxyprune.predict import Prediction
from proxyprune.rules import Options
from proxyprune.trace import ExampleInputs, capture

NORM_GROUPS = ("balanced", "whole", "reduced")
CONV_GROUPS = ("balanced", "whole")


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    norm_groups: str = "balanced",
    conv_groups: str = "balanced",
    probe: bool = True,
) -> ModelGraph:
    """Read a model: its channel groups, its exact cost, its blocks.

    Nothing is run on real data, and the model is not changed. It may live on the meta device or be built under FakeTensorMode.

    Args:
        model: Any torch module.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments. Costs are for these inputs; with a batch of 1
            they are costs of one sample.
        norm_groups: How GroupNorm shrinks: "balanced" keeps the number of groups and takes as many channels from each, "whole" takes
            whole groups, "reduced" may lower the number of groups for finer steps.
        conv_groups: How a grouped convolution shrinks: "balanced" keeps its groups, "whole" takes whole groups.
        probe: Cut every group by one step on a copy without weights, and pin the groups for which the forward does not follow (a size
            written as a constant, say). Without it such groups show up when a plan is applied.

    Returns:
        The graph. `graph.unsupported_ops` and the `pinned` reasons of `graph.groups` say what will not be cut, and why.

    Raises:
        ExampleInputsError: If the model raises on the inputs.
        TraceError: If torch.export cannot follow the model.
        InputError: If an option has an unknown value.
    """
    for name, value, known in (("norm_groups", norm_groups, NORM_GROUPS), ("conv_groups", conv_groups, CONV_GROUPS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; found {value!r}.")
    graph = analyse(model, capture(model, example_inputs), Options(norm_groups, conv_groups), {})
    return probe_groups(model, example_inputs, graph) if probe else graph


def trace_like(model: nn.Module, example_inputs: ExampleInputs, options: Mapping[str, Any]) -> ModelGraph:
    """Trace a model with the options that a plan was made with."""
    pins = options.get("pinned", {})
    chosen = Options(options.get("norm_groups", "balanced"), options.get("conv_groups", "balanced"))
    return analyse(model, capture(model, example_inputs), chosen, pins)


def probe_groups(model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph) -> ModelGraph:
    """Pin the groups that the forward does not follow when every group loses one step."""
    for _ in range(len(graph.prunable) + 1):
        prediction = Prediction(graph, [_one_step_less(group) for group in graph.prunable], frozenset())
        if all(mask.all() for mask in prediction.kept):
            return graph
        _, difference = attempt_surgery(model, prediction, example_inputs)
        if difference is None:
            return graph
        reason = f"is not followed by the forward of {difference.module or 'the model'}: {difference.message}"
        graph = with_pins(model, graph, blamed_groups(prediction, difference), reason)
    return graph


def with_pins(model: nn.Module, graph: ModelGraph, groups: tuple[str, ...], reason: str) -> ModelGraph:
    """The graph with some groups pinned, and with them the groups that stand at the same place in modules of the same class."""
    kinds = {_place(graph, graph.by_id[group]) for group in groups}
    alike = [group for group in graph.prunable if group.id in groups or _place(graph, group) in kinds]
    pins = dict(graph.pins)
    for group in alike:
        first = group.members[0]
        pins[f"{first.parameter}:{first.dim}"] = reason
    return analyse(model, graph.program, graph.options, pins)


def _place(graph: ModelGraph, group: ChannelGroup) -> tuple[str, str, int]:
    module, _, local = group.members[0].parameter.rpartition(".")
    parent = module.rpartition(".")[0]
    return graph.program.classes.get(parent, ""), f"{module.rpartition('.')[2]}.{local}", group.members[0].dim


def _one_step_less(group: ChannelGroup) -> np.ndarray:
    mask = np.ones(group.atoms, dtype=bool)
    if group.atoms - group.step < 1:
        return mask
    if group.bins is None:
        mask[-group.step :] = False
        return mask
    bins = np.array(group.bins)
    leaving = group.step // (int(bins.max()) + 1)
    for number in range(int(bins.max()) + 1):
        mask[np.flatnonzero(bins == number)[len(np.flatnonzero(bins == number)) - leaving :]] = False
    return mask
