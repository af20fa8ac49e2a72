"""What an axis rule sees and what it answers.

A rule is a small function `rule(walk, node) -> Outcome`, registered in a table under the op's name without overload ("aten.linear").
It reads the axes of its inputs, records relations in `walk.labels`, and says: the axes of its outputs, which integer arguments
of the call follow an axis (so that the pruned program can be predicted), the multiply-accumulates it spends, and whether its
output is zero wherever a channel was dropped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from proxyprune.axes import Axis, LabelArray, Labels
from proxyprune.program import Program

Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class CommonDivisor:
    """The greatest common divisor of `number` and the kept size of `axis`: as many norm groups as still fit."""

    number: int
    axis: LabelArray


Size = int | LabelArray | CommonDivisor
"""An integer argument: constant, the number of kept positions of an axis, or a divisor of that."""

Sizes = dict[int | str, Size | tuple[Size, ...]]
"""Position or name of an argument -> the integers it must hold after pruning."""


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
        sizes: Integer arguments that follow an axis.
        macs: Multiply-accumulates.
        zero: The output is zero at every dropped position when the parameters' dropped slices are.
        known: False for an op without a rule, or with arguments that its rule does not know.
        costed: False for an op that multiplies in a way that no cost rule covers.
    """

    outputs: tuple[Axes, ...]
    sizes: Mapping[int | str, Size | tuple[Size, ...]] = field(default_factory=dict)
    macs: tuple[Term, ...] = ()
    zero: bool = False
    costed: bool = True
    known: bool = True


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
        outputs: Axes of every output of the nodes passed so far.
        zeros: Whether their values are zero at every dropped position.
        held: Reductions that are statistics of a hand-written norm.
    """

    program: Program
    options: Options
    labels: Labels
    choices: Mapping[tuple[str, str, int], int | None] | None
    factored: list[Factored] = field(default_factory=list)
    outputs: dict[Node, tuple[Axes, ...]] = field(default_factory=dict)
    zeros: dict[Node, bool] = field(default_factory=dict)
    weights: set[Node] = field(default_factory=set)
    held: set[Node] = field(default_factory=set)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's (first) tensor; () for a number."""
        return output_shapes(node)[0]

    def axes(self, node: Node) -> Axes:
        """Axes of a node's (first) tensor."""
        return self.outputs[node][0]

    def is_weight(self, node: Node) -> bool:
        """Whether a node's value is made of parameters alone."""
        return node in self.weights

    def zero(self, node: Node | None) -> bool:
        """Whether a node's value is zero at every dropped position; an absent tensor is."""
        return node is None or self.zeros.get(node, False)

    def where(self, node: Node) -> str:
        """'op in module', for messages."""
        owner = self.program.owners.get(node.name, "")
        return f"{op_name(node)} in {owner or 'the model itself'}"

    def open(self, axes: Sequence[Axis]) -> list[int]:
        """Dimensions that may shrink, as far as is known by now, counted from the right: 1 is the last one."""
        return [offset for offset, axis in enumerate(reversed(axes), start=1) if self.labels.may_shrink(axis)]

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
    """The same ops together with their variants that write into their first argument."""
    return (*names, *(f"{name}_" for name in names))


def op_name(node: Node) -> str:
    """'aten.linear' for aten.linear.default."""
    target = node.target
    if target is operator.getitem:
        return "getitem"
    packet = getattr(target, "overloadpacket", None)
    return str(packet) if packet is not None else str(getattr(target, "__name__", target))


def overload(node: Node) -> str:
    """'int' for aten.split.int."""
    return str(getattr(node.target, "_overloadname", ""))


def _schema_of(node: Node) -> torch.FunctionSchema:
    schema = getattr(node.target, "_schema", None)
    if not isinstance(schema, torch.FunctionSchema):
        raise TypeError(f"{op_name(node)} has no schema, so its arguments have no names.")
    return schema


def arguments(node: Node) -> dict[str, Any]:
    """The call's arguments by schema name, defaults filled in."""
    schema = _schema_of(node)
    values = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)})
    values.update(node.kwargs)
    return values


def tensor_argument(node: Node, key: int | str) -> Node:
    """A tensor that an op takes, by position or by name.

    Raises:
        TypeError: If the call has no tensor there; a rule asks only for what the op's schema demands.
    """
    value = node.args[key] if isinstance(key, int) else arguments(node)[key]
    if not isinstance(value, Node):
        raise TypeError(f"{op_name(node)} takes {value!r} as argument {key!r}, where a tensor was expected.")
    return value


def integers(value: Any) -> tuple[int, ...]:
    """An integer argument, or a list of them, as a tuple."""
    return tuple(int(item) for item in (value if isinstance(value, list | tuple) else (value,)))


def position_of(node: Node, name: str) -> int | str:
    """Where an argument stands in this call: its index when it was passed by position, else its name."""
    for index, argument in enumerate(_schema_of(node).arguments):
        if argument.name == name:
            return index if index < len(node.args) else name
    raise KeyError(name)


def writes_to(node: Node) -> Node | None:
    """The tensor that an in-place op overwrites."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not node.args:
        return None
    first = node.args[0]
    return first if isinstance(first, Node) else None


def output_shapes(node: Node) -> list[tuple[int, ...]]:
    """Shapes of all output tensors of a node; () for an output that is no tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [tuple(int(size) for size in item.shape) if isinstance(item, Tensor) else () for item in values] or [()]


def is_tensor(node: Node) -> bool:
    """True for a node whose value is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def fixed(shape: Sequence[int]) -> Axes:
    """Axes of a tensor that nothing can cut."""
    return (None,) * len(shape)


def kept_whole(walk: Walk, node: Node, reason: str, macs: tuple[Term, ...] = ()) -> Outcome:
    """Pin everything that goes into an op; the reason ends in where."""
    walk.pin_all(node, f"{reason} {walk.where(node)}")
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)), macs=macs)


def sizes_of(shape: Sequence[int], axes: Axes) -> tuple[Size, ...]:
    """What a size argument must hold for an output of these axes."""
    return tuple(size if axis is None else axis for size, axis in zip(shape, axes, strict=True))


def dims_of(value: Any, ndim: int) -> tuple[int, ...]:
    """Normalise a `dim` argument (None, an int, or a list) to non-negative dimensions; None and [] mean all."""
    if value is None or ndim == 0 or (isinstance(value, list | tuple) and not value):
        return tuple(range(ndim))
    return tuple(item % ndim for item in integers(value))


def spans(walk: Walk, tensor: Node, shape: Sequence[int], offset: int) -> bool:
    """True when a tensor has its own entries along a dimension of a broadcast result, instead of being stretched."""
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
    """A broadcast sum is zero at dropped positions when every summand is, along every dimension that may shrink."""
    offsets = walk.open(axes)
    return all(walk.zero(tensor) and all(spans(walk, tensor, shape, offset) for offset in offsets) for tensor in tensors)


def product_is_zero(walk: Walk, axes: Axes, shape: Sequence[int], tensors: Sequence[Node]) -> bool:
    """A broadcast product is zero at dropped positions when, along every dimension that may shrink, some factor is."""
    zeros = [tensor for tensor in tensors if walk.zero(tensor)]
    return bool(zeros) and all(any(spans(walk, tensor, shape, offset) for tensor in zeros) for offset in walk.open(axes))


def repeat_each(axis: Axis, times: int) -> Axis:
    """Label k stands `times` times in a row, for every k."""
    return None if axis is None else np.repeat(axis, times)


def repeat_whole(axis: Axis, times: int) -> Axis:
    """The whole run of labels stands `times` times."""
    return None if axis is None else np.tile(axis, times)


def aliases_of(node: Node) -> Iterator[Node]:
    """A tensor and every view that shares its storage, from the tensor that the views were made of."""
    root = node
    while (base := _viewed(root)) is not None:
        root = base
    pending = [root]
    while pending:
        current = pending.pop()
        yield current
        pending += [user for user in current.users if _viewed(user) is current]


def _viewed(node: Node) -> Node | None:
    """The tensor that an op returns a view of; None for an op that makes a new tensor."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source = node.args[0]
        return source if isinstance(source, Node) and _viewed(source) is not None else None
    schema = getattr(node.target, "_schema", None)
    aliased = schema is not None and any(result.alias_info is not None for result in schema.returns)
    first = node.args[0] if node.args else None
    return first if aliased and isinstance(first, Node) else None
