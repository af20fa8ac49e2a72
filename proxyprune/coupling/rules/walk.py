"""The input of an axis rule, and its result.

A rule is a small function `rule(walk, node) -> Outcome`, registered in a table under the op's name without overload ("aten.linear").
It reads the axes of its inputs, records relations in `walk.labels`, and says: the axes of its outputs, which integer arguments
of the call follow an axis (so that the pruned program can be predicted), the multiply-accumulates it spends, and whether its
output is zero wherever a channel was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.fx import Node

from proxyprune.coupling.axes import Axis, AxisLabels
from proxyprune.coupling.options import Options
from proxyprune.coupling.outcome import Axes, Outcome, Size, Term
from proxyprune.tracing.nodes import aliases_of, integers, op_name, output_shapes, writes_to
from proxyprune.tracing.program import Program


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
        outputs: Axes of every output of the nodes passed so far.
        zeros: Whether their values are zero at every dropped position.
        weights: Nodes whose values are made of parameters, and of constants.
        constants: Nodes whose values are made of buffers and constants alone.
        held: Reductions that are statistics of a hand-written norm.
    """

    program: Program
    options: Options
    labels: AxisLabels
    choices: Mapping[tuple[str, str, int], int | None] | None
    factored: list[Factored] = field(default_factory=list)
    outputs: dict[Node, tuple[Axes, ...]] = field(default_factory=dict)
    zeros: dict[Node, bool] = field(default_factory=dict)
    weights: set[Node] = field(default_factory=set)
    constants: set[Node] = field(default_factory=set)
    held: set[Node] = field(default_factory=set)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's (first) tensor; () for a number."""
        return output_shapes(node)[0]

    def axes(self, node: Node) -> Axes:
        """Axes of a node's (first) tensor."""
        return self.outputs[node][0]

    def is_weight(self, node: Node) -> bool:
        """Return True if a node's value is made of parameters, and of constants such as masks over them."""
        return node in self.weights

    def is_constant(self, node: Node) -> bool:
        """Return True if a node's value is made of buffers and constants alone."""
        return node in self.constants

    def zero(self, node: Node | None) -> bool:
        """Return True if a node's value is zero at every dropped position, or the tensor is absent."""
        return node is None or self.zeros.get(node, False)

    def where(self, node: Node) -> str:
        """'op in module', for messages."""
        owner = self.program.owners.get(node.name, "")
        return f"{op_name(node)} in {owner or 'the model itself'}"

    def open(self, axes: Sequence[Axis]) -> list[int]:
        """Dimensions that may shrink, as far as is known by now, counted from the right: 1 is the last one."""
        return [offset for offset, axis in enumerate(reversed(axes), start=1) if self.labels.may_shrink(axis)]

    def any_open(self, axes: Sequence[Axis], unless: Callable[[int], bool]) -> bool:
        """Return True if a dimension may shrink for which `unless` does not hold; `unless` receives offsets as `open` returns them.

        `may_shrink` is called only for dimensions that decide the result, because a call limits how far a walk can be reused.
        """
        offsets = range(1, len(axes) + 1)
        return any(not unless(offset) and self.labels.may_shrink(axes[-offset]) for offset in offsets)

    def pin(self, axes: Sequence[Axis], node: Node, reason: str) -> None:
        """Pin axes; the reason ends in where: 'is rolled in' ... 'aten.roll in blocks.0'."""
        for axis in axes:
            self.labels.pin(axis, f"{reason} {self.where(node)}")

    def pin_all(self, node: Node, reason: str) -> None:
        """Pin every axis that goes into a node."""
        for source in node.all_input_nodes:
            for axes in self.outputs.get(source, ()):
                for axis in axes:
                    self.labels.pin(axis, reason)


Rule = Callable[[Walk, Node], Outcome]


def ops(names: str) -> tuple[str, ...]:
    """Full names of several ops: "view reshape" -> ("aten.view", "aten.reshape")."""
    return tuple(f"aten.{name}" for name in names.split())


def in_place(names: Sequence[str]) -> tuple[str, ...]:
    """Return the same ops together with their variants that write into their first argument."""
    return (*names, *(f"{name}_" for name in names))


def fixed(shape: Sequence[int]) -> Axes:
    """Axes of a tensor that nothing can cut."""
    return (None,) * len(shape)


def kept_whole(walk: Walk, node: Node, reason: str, macs: tuple[Term, ...] = ()) -> Outcome:
    """Pin everything that goes into an op; the reason ends in where."""
    walk.pin_all(node, f"{reason} {walk.where(node)}")
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)), macs=macs)


def sizes_of(shape: Sequence[int], axes: Axes) -> tuple[Size, ...]:
    """Return what a size argument must hold for an output of these axes."""
    return tuple(size if axis is None else axis for size, axis in zip(shape, axes, strict=True))


def dims_of(value: Any, ndim: int) -> tuple[int, ...]:
    """Normalise a `dim` argument (None, an int, or a list) to non-negative dimensions; None and [] mean all."""
    if value is None or ndim == 0 or (isinstance(value, list | tuple) and not value):
        return tuple(range(ndim))
    return tuple(item % ndim for item in integers(value))


def spans(walk: Walk, tensor: Node, shape: Sequence[int], offset: int) -> bool:
    """Return True if a tensor has its own entries along a dimension of a broadcast result, instead of being stretched."""
    own = walk.shape(tensor)
    return offset <= len(own) and (own[-offset] != 1 or shape[-offset] == 1)


def broadcast(walk: Walk, node: Node, tensors: Sequence[Node], shape: Sequence[int]) -> Axes:
    """Axes of an elementwise result: dimensions line up from the right, size 1 stretches."""
    where = walk.where(node)
    result: list[Axis] = []
    for offset in range(len(shape), 0, -1):
        meeting = [walk.axes(tensor)[-offset] for tensor in tensors if spans(walk, tensor, shape, offset)]
        result.append(walk.labels.unify(meeting, where) if meeting else None)
    return tuple(result)


def sum_is_zero(walk: Walk, axes: Axes, shape: Sequence[int], tensors: Sequence[Node]) -> bool:
    """Return zeros of a broadcast sum: at dropped positions where every summand is zero, along every dimension that may shrink."""
    if not all(walk.zero(tensor) for tensor in tensors):
        return False
    return not walk.any_open(axes, lambda offset: all(spans(walk, tensor, shape, offset) for tensor in tensors))


def product_is_zero(walk: Walk, axes: Axes, shape: Sequence[int], tensors: Sequence[Node]) -> bool:
    """Return zeros of a broadcast product: at dropped positions where some factor is zero, along every dimension that may shrink."""
    zeros = [tensor for tensor in tensors if walk.zero(tensor)]
    return bool(zeros) and not walk.any_open(axes, lambda offset: any(spans(walk, tensor, shape, offset) for tensor in zeros))


def written_in_place(walk: Walk, node: Node, outcome: Outcome) -> Outcome:
    """Note that an op in place changes what the other views of its tensor hold; returns the outcome."""
    target = writes_to(node)
    if target is not None and not outcome.zero:
        for alias in aliases_of(target):
            walk.zeros[alias] = False
    return outcome


def repeat_each(axis: Axis, times: int) -> Axis:
    """Label k stands `times` times in a row, for every k."""
    return None if axis is None else np.repeat(axis, times)


def repeat_whole(axis: Axis, times: int) -> Axis:
    """Repeat the whole run of labels `times` times."""
    return None if axis is None else np.tile(axis, times)
