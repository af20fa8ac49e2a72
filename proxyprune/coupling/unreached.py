"""Parameters that the traced call does not reach: they stay whole, and so does every axis that they may share.

An auxiliary head, a mask token or a second tower runs in other calls than the traced one. How it is wired to the rest is unknown, so
equal sizes are the only evidence. An input whose size neither another axis nor the layer before explains may be a concatenation or a
flattened map of any narrower axes. Only those axes count that a forward around the unreached parameter sees: what stays between two layers
inside another module (the hidden width of its MLP) never comes out of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.fx import Node

from proxyprune.coupling.axes import Axis, AxisLabels, LabelArray
from proxyprune.coupling.outcome import Outcome
from proxyprune.tracing.program import Program

Outcomes = Mapping[Node, Outcome]

UNREACHED = "belongs to a parameter that the example call does not reach"


def pin_unreached(
    program: Program, model: nn.Module, leaves: Mapping[str, tuple[Axis, ...]], labels: AxisLabels, outcomes: Iterable[Outcomes]
) -> None:
    """Pin unreached parameters, and the axes of reached ones that may be shared with them.

    Args:
        program: The program, with those of further calls.
        model: The traced module.
        leaves: Axes of every parameter and buffer.
        labels: Where axes are pinned.
        outcomes: What the rules returned for the ops of each program.
    """
    if not program.unreached:
        return
    hidden = set(program.unreached)
    for name in program.unreached:
        for axis in leaves[name]:
            labels.pin(axis, UNREACHED)
    equal, wider = _shared_sizes(program)
    seen = _Seen.of(program, model, labels, outcomes)
    for name, axes in leaves.items():
        for axis in axes if name not in hidden else ():
            if axis is None:
                continue
            others = [*equal.get(len(axis), ()), *(other for size, found in wider.items() if size > len(axis) for other in found)]
            other = next((other for other in others if seen.near(axis, other)), None)
            if other is not None:
                labels.pin(axis, f"may be shared with {other}, which the example call does not reach")


@dataclass(frozen=True)
class _Seen:
    """Modules whose forwards see a tensor with a class of positions.

    Attributes:
        classes: Class of every label.
        scopes: Class -> names of these modules; whatever lies inside one of them may be passed the tensor.
    """

    classes: LabelArray
    scopes: Mapping[int, set[str]]

    @staticmethod
    def of(program: Program, model: nn.Module, labels: AxisLabels, outcomes: Iterable[Outcomes]) -> _Seen:
        """Follow every tensor from the op that makes it to those that read it: the module around both sees it."""
        classes = labels.solve().of
        containers = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.ModuleDict)}
        scopes: dict[int, set[str]] = {}
        for one, of_ops in zip(program.programs, outcomes, strict=True):
            for node, outcome in of_ops.items():
                owners = {one.owners[user.name] for user in node.users if user.op == "call_function"} | {one.owners[node.name]}
                scope = _around(owners, containers) if all(user.op == "call_function" for user in node.users) else ""
                for axis in (axis for axes in outcome.outputs for axis in axes if axis is not None):
                    for number in np.unique(classes[axis]).tolist():
                        scopes.setdefault(number, set()).add(scope)
        return _Seen(classes, scopes)

    def near(self, axis: LabelArray, parameter: str) -> bool:
        """Return True if a forward around a parameter sees a tensor with positions of an axis; an axis that no tensor has counts too."""
        numbers = np.unique(self.classes[axis]).tolist()
        scopes = {scope for number in numbers for scope in self.scopes.get(number, {""})}
        return any(not scope or parameter.startswith(f"{scope}.") for scope in scopes)


def _around(owners: Collection[str], containers: Collection[str]) -> str:
    """Return the innermost module with a forward that holds all of these modules, or is the only one; "" stands for the model."""
    paths = [owner.split(".") if owner else [] for owner in owners]
    shared = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
    scope = [parts[0] for parts in shared]
    while ".".join(scope) in containers and scope:
        scope.pop()
    return ".".join(scope)


def _shared_sizes(program: Program) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Sizes of unreached dimensions, and sizes of unreached inputs that nothing explains, with the parameters that have them."""
    hidden = set(program.unreached)
    explained = {size for name, shape in program.shapes.items() if name not in hidden for size in shape}
    equal: dict[int, list[str]] = {}
    wider: dict[int, list[str]] = {}
    before: dict[str, int] = {}  # parent module -> outputs of the unreached layer before this one
    for name in program.unreached:
        shape = program.shapes[name]
        for size in shape:
            equal.setdefault(size, []).append(name)
        if len(shape) < 2:
            continue
        parent = name.rpartition(".")[0].rpartition(".")[0]
        outputs = before.get(parent, 0)
        if shape[1] not in explained and not (outputs > 1 and shape[1] % outputs == 0):
            wider.setdefault(shape[1], []).append(name)
        before[parent] = shape[0]
        explained.add(shape[0])
    return equal, wider
