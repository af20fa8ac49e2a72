"""What an axis rule sees and what it answers.

A rule is a small function `rule(walk, node) -> Outcome`, registered in a table under the op's name without overload ("aten.linear").
It reads the axes of its inputs, records relations in `walk.labels`, and says: the axes of its outputs, which integer arguments
of the call follow an axis (so that the pruned program can be predicted), the multiply-accumulates it spends, and whether its
output is zero wherever a channel was dropped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from proxyprune.axes import Axis, LabelArray, Labels
from proxyprune.capture import Program

Axes = tuple[Axis, ...]
Size = int | LabelArray
"""An integer argument: constant, or the number of kept positions of an axis."""


@dataclass(frozen=True, slots=True)
class Term:
    """constant * product of the kept sizes of `axes`: one summand of a cost."""

    constant: int
    axes: tuple[LabelArray, ...] = ()

    @staticmethod
    def of(*dimensions: tuple[int, Axis]) -> Term:
        """Product over (size, axis) pairs; fixed dimensions go into the constant."""
        constant, axes = 1, []
        for size, axis in dimensions:
            if axis is None:
                constant *= size
            else:
                axes.append(axis)
        return Term(constant, tuple(axes))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one op does to axes.

    Attributes:
        outputs: Axes of each output tensor.
        sizes: Position or name of an argument -> the integers it must hold after pruning.
        macs: Multiply-accumulates.
        zero: The output is zero at every dropped position when the inputs' dropped slices are.
        costed: False for an op that multiplies in a way that no cost rule covers.
    """

    outputs: tuple[Axes, ...]
    sizes: Mapping[int | str, Size | tuple[Size, ...]] = field(default_factory=dict)
    macs: tuple[Term, ...] = ()
    zero: bool = False
    costed: bool = True


@dataclass(frozen=True)
class Options:
    """How norm groups and convolution groups may shrink.

    Attributes:
        norm_groups: "balanced" keeps the number of norm groups and takes the same number of channels from each; "whole" removes
            whole norm groups; "reduced" may lower the number of norm groups for finer steps.
        conv_groups: "balanced" keeps the number of convolution groups; "whole" removes whole ones.
    """

    norm_groups: str = "balanced"
    conv_groups: str = "balanced"


@dataclass(frozen=True, slots=True)
class Factored:
    """A dimension that a reshape splits into, or merges from, several labelled factors; only one of them can shrink."""

    key: tuple[str, str, int]
    factors: tuple[Axis, ...]
    sizes: tuple[int, ...]


@dataclass
class Walk:
    """One pass over a program.

    Attributes:
        choices: Which factor shrinks, by `Factored.key`; None in the scouting pass, which cuts every ambiguous reshape open.
        factored: The ambiguous reshapes met while scouting.
    """

    program: Program
    options: Options
    labels: Labels
    choices: Mapping[tuple[str, str, int], int | None] | None
    factored: list[Factored] = field(default_factory=list)
    outputs: dict[Node, tuple[Axes, ...]] = field(default_factory=dict)
    zeros: dict[Node, bool] = field(default_factory=dict)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's (first) tensor."""
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            value = value[0]
        return tuple(int(size) for size in value.shape)

    def axes(self, node: Node) -> Axes:
        """Axes of a node's (first) tensor."""
        return self.outputs[node][0]

    def where(self, node: Node) -> str:
        """'op in module', for messages."""
        owner = self.program.owners.get(node.name, "")
        return f"{op_name(node)} in {owner or 'the model itself'}"

    def pin_all(self, node: Node, reason: str) -> None:
        """Pin every axis that goes into a node."""
        for source in node.all_input_nodes:
            for axes in self.outputs.get(source, ()):
                for axis in axes:
                    self.labels.pin(axis, reason)


Rule = Callable[[Walk, Node], Outcome]


def op_name(node: Node) -> str:
    """'aten.linear' for aten.linear.default."""
    target = node.target
    if target is operator.getitem:
        return "getitem"
    packet = getattr(target, "overloadpacket", None)
    return str(packet) if packet is not None else str(getattr(target, "__name__", target))


def arguments(node: Node) -> dict[str, Any]:
    """The call's arguments by schema name, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)})
    values.update(node.kwargs)
    return values


def position_of(node: Node, name: str) -> int | str:
    """Where an argument stands in this call: its index when it was passed by position, else its name."""
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return index if index < len(node.args) else name
    raise KeyError(name)


def output_shapes(node: Node) -> list[tuple[int, ...]]:
    """Shapes of all output tensors of a node; () entries for outputs that are no tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [tuple(int(size) for size in item.shape) if isinstance(item, Tensor) else () for item in values]


def fixed(shape: Sequence[int]) -> Axes:
    """Axes of a tensor that nothing can cut."""
    return (None,) * len(shape)


def sizes_of(shape: Sequence[int], axes: Axes) -> tuple[Size, ...]:
    """What a size argument must hold for an output of these axes."""
    return tuple(size if axis is None else axis for size, axis in zip(shape, axes, strict=True))


def dims_of(value: Any, ndim: int) -> tuple[int, ...]:
    """Normalise a `dim` argument (None, an int, or a list) to non-negative dimensions; None and [] mean all."""
    if value is None or (isinstance(value, list | tuple) and not value):
        return tuple(range(ndim))
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(int(item) % max(ndim, 1) for item in items)


def broadcast(walk: Walk, node: Node, tensors: Sequence[Node], shape: Sequence[int], where: str | None = None) -> Axes:
    """Axes of an elementwise result: dimensions line up from the right, size 1 stretches."""
    where = where or walk.where(node)
    result: list[Axis] = []
    for offset in range(len(shape), 0, -1):
        meeting = []
        for tensor in tensors:
            own = walk.shape(tensor)
            if offset <= len(own) and (own[-offset] != 1 or shape[-offset] == 1):
                meeting.append(walk.axes(tensor)[-offset])
        result.append(walk.labels.unify(meeting, where) if meeting else None)
    return tuple(result)


def repeat_each(axis: Axis, times: int) -> Axis:
    """Label k stands `times` times in a row, for every k."""
    return None if axis is None else np.repeat(axis, times)


def repeat_whole(axis: Axis, times: int) -> Axis:
    """The whole run of labels stands `times` times."""
    return None if axis is None else np.tile(axis, times)
