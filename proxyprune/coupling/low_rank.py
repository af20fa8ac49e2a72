"""Find adapters: a low-rank pair of products beside a base layer, as LoRA adds to a frozen network. Their inner rank stays whole.

The pair reads what the base layer reads, nothing but a factor or dropout stands between its products, and its result is added to the base
layer's. A rank is chosen with the training that the adapter is for, and other code reads it, so it is cut only on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Node

from proxyprune.coupling.axes import Axis, AxisLabels
from proxyprune.tracing.nodes import op_name
from proxyprune.tracing.program import Program

REASON = "is the inner rank of an adapter; adapter_ranks='cut' (--adapter-ranks cut) cuts it"

_NEUTRAL = frozenset(f"aten.{name}" for name in "dropout dropout_ clone contiguous to alias detach _to_copy type_as".split())
_RESHAPING = frozenset(f"aten.{name}" for name in "view reshape transpose t permute numpy_T".split())
_FACTORS = frozenset({"aten.mul", "aten.mul_", "aten.div", "aten.div_"})
_SWAPS = frozenset({"aten.t", "aten.transpose", "aten.permute", "aten.numpy_T"})
_SUMS = frozenset({"aten.add", "aten.add_"})
_LAYERS = frozenset({"aten.linear", "aten.convolution"} | {f"aten.conv{n}d" for n in "123"})
_MATRIX_PRODUCTS = frozenset({"aten.matmul", "aten.mm"})


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank pair.

    Attributes:
        down: Parameter that maps to the inner rank, and its dimension of that size.
        up: Parameter that maps back, and its dimension of that size.
    """

    down: tuple[str, int]
    up: tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter as an op reads it; `swapped` if its two dimensions are exchanged on the way."""

    name: str
    swapped: bool

    def dim(self, dim: int) -> int:
        return 1 - dim if self.swapped else dim


@dataclass(frozen=True, slots=True)
class _Product:
    """A product of data with a weight: the parameter's dimensions that run along the input and the output."""

    data: Node
    weight: str
    into: int
    out: int


def pin_adapters(found: Iterable[Adapter], leaves: Mapping[str, tuple[Axis, ...]], labels: AxisLabels) -> None:
    """Pin the inner ranks of adapters."""
    for adapter in found:
        for name, dim in (adapter.down, adapter.up):
            labels.pin(leaves[name][dim], REASON)


def adapters(program: Program) -> Iterator[Adapter]:
    """Yield the adapters of all example calls."""
    for one in program.programs:
        for node in one.calls:
            found = _beside_a_layer(one, node) or _added_to_a_weight(one, node)
            if found is not None and _is_low_rank(program, found):
                yield found


def _is_low_rank(program: Program, adapter: Adapter) -> bool:
    (down, rank), (up, inner) = adapter.down, adapter.up
    size = program.shapes[down][rank]
    return size == program.shapes[up][inner] and size < min(program.shapes[down][1 - rank], program.shapes[up][1 - inner])


def _beside_a_layer(program: Program, node: Node) -> Adapter | None:
    up = _product(program, node)
    down = None if up is None else _product(program, _back(up.data))
    if up is None or down is None or up.weight == down.weight:
        return None
    source = _back(down.data)
    for end in _ahead(node, _NEUTRAL):
        others = (leaf for leaf in _summands(end) if leaf is not node)
        bases = (base for leaf in others if (base := _product(program, leaf)) is not None)
        if any(_back(base.data) is source and base.weight not in (up.weight, down.weight) for base in bases):
            return Adapter((down.weight, down.out), (up.weight, up.into))
    return None


def _added_to_a_weight(program: Program, node: Node) -> Adapter | None:
    """Return the pair if a product of two parameters is added to a third one."""
    if op_name(node) not in _MATRIX_PRODUCTS:
        return None
    up, down = (_weight(program, source) if isinstance(source, Node) else None for source in node.args[:2])
    if up is None or down is None:
        return None
    for end in _ahead(node, _NEUTRAL | _RESHAPING):
        if any(leaf is not node and _weight(program, leaf) is not None for leaf in _summands(end)):
            return Adapter((down.name, down.dim(0)), (up.name, up.dim(1)))
    return None


def _product(program: Program, node: Node) -> _Product | None:
    name = op_name(node)
    operands = [source for source in node.args if isinstance(source, Node)]
    if name in _LAYERS and (weight := _weight(program, operands[1])) is not None:
        return _Product(operands[0], weight.name, weight.dim(1), weight.dim(0))
    if name == "aten.embedding" and (weight := _weight(program, operands[0])) is not None:
        return _Product(operands[1], weight.name, weight.dim(0), weight.dim(1))
    if name in _MATRIX_PRODUCTS and _weight(program, operands[0]) is None and (weight := _weight(program, operands[1])) is not None:
        return _Product(operands[0], weight.name, weight.dim(0), weight.dim(1))
    return None


def _weight(program: Program, node: Node) -> _Weight | None:
    """Return the parameter that a tensor is, copied or with two dimensions exchanged."""
    swapped = False
    while node.op == "call_function" and op_name(node) in _NEUTRAL | _SWAPS and isinstance(node.args[0], Node):
        swapped ^= op_name(node) in _SWAPS
        node = node.args[0]
    name = program.state.get(node.name) if node.op == "placeholder" else None
    return _Weight(name, swapped) if name in program.trainable and len(program.shapes[name]) >= 2 else None


def _back(node: Node) -> Node:
    """Return the op whose result arrives here, possibly scaled or dropped out."""
    while _passes(node, _NEUTRAL):
        node = node.all_input_nodes[0]
    return node


def _passes(node: Node, names: frozenset[str]) -> bool:
    name = op_name(node) if node.op == "call_function" else ""
    return name in names or (name in _FACTORS and len(node.all_input_nodes) == 1)


def _ahead(node: Node, names: frozenset[str]) -> Iterator[Node]:
    """Yield the sums that a result goes into, possibly scaled."""
    for user in node.users:
        if op_name(user) in _SUMS:
            yield user
        elif _passes(user, names):
            yield from _ahead(user, names)


def _summands(node: Node) -> Iterator[Node]:
    """Yield what is added up; sums and factors on the way are opened."""
    for source in node.all_input_nodes:
        source = _back(source)
        if source.op == "call_function" and op_name(source) in _SUMS:
            yield from _summands(source)
        else:
            yield source
