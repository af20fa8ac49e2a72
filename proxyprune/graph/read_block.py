"""Kind, widths, length and heads of a block for a reader; the channel axis is the one that the groups cut.

The first release took the first labelled axis for the channels, so tokens with a position embedding passed for a width. Fingerprints of
plans and recorded prompts follow that reading still (`Structure.first_reading`); text, JSON and new prompts follow this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from proxyprune.coupling.coupling import Coupling
from proxyprune.graph.find_blocks import ATTENTION, JOINS, PRODUCTS, BlockFinder, Span
from proxyprune.tracing.nodes import op_name

_ACTIVATIONS = frozenset(
    f"aten.{name}" for name in "relu relu_ gelu silu silu_ sigmoid tanh hardswish mish leaky_relu elu softplus square".split()
)
_BETWEEN = frozenset(
    f"aten.{name}"
    for name in "dropout dropout_ clone contiguous view reshape mul mul_ chunk split slice getitem transpose permute to _to_copy "
    "type_as cat pow add".split()
) | {"_operator.getitem"}
_STREAM_DIMS = 3
"""Fewest dimensions of what passes a feed-forward part of a transformer; a condition has two."""


@dataclass(frozen=True)
class Reading:
    """The properties of a block that a reader sees.

    Attributes:
        kind: As in `Block`.
        resolution: As in `Block`.
        widths: As in `Block`.
        heads: Attention heads, 0 if there are none or they are not on an axis of their own.
    """

    kind: str
    resolution: tuple[int, ...]
    widths: tuple[int | None, int | None]
    heads: int


def read_block(finder: BlockFinder, coupling: Coupling, name: str, *, first: bool, last: bool) -> Reading:
    """Read a block.

    Args:
        finder: Knows the block's ops.
        coupling: Knows what is cut.
        name: The block.
        first: Whether it runs first.
        last: Whether it runs last.
    """
    span = finder.span(name)
    result = _main_result(span)
    source = _main_source(span, result)
    before, width_in = _size(source, coupling)
    after, width_out = _size(result, coupling)
    heads = _heads(span)
    resampled = source is not None and result is not None and _dims(source) == _dims(result) > 2 and before != after
    return Reading(
        kind=_kind(finder, name, position=(first, last), resampled=resampled),
        resolution=after,
        widths=(width_in if width_out is not None else None, width_out),
        heads=heads,
    )


def _kind(finder: BlockFinder, name: str, *, position: tuple[bool, bool], resampled: bool) -> str:
    span = finder.span(name)
    names = [op_name(node) for node in span.nodes]
    products = [op for op in names if op in PRODUCTS]
    convolves = any("conv" in op for op in names)
    linears = names.count("aten.linear") + names.count("aten.addmm")
    residual = name in finder.residual_paths
    if any(op in ATTENTION for op in names):
        return "transformer" if (linears >= 5 and residual) or _has_feedforward(span) else "attention"
    if products and True in position:
        return "stem" if position[0] else "head"
    if any("embedding" in op for op in names):
        return "embedding"
    if resampled and len(products) <= 2:
        return "resample"
    if convolves and (residual or (any(op in JOINS for op in names) and len(products) >= 3)):
        return "residual"
    if len(products) >= 2:
        return "conv" if convolves else "feedforward"
    if products:
        return "conv" if convolves else "residual" if residual else "linear"
    normalises = any("norm" in op for op in names) or "aten.rsqrt" in names
    return "residual" if residual else "norm" if normalises else "other"


def _has_feedforward(span: Span) -> bool:
    """Return True if an activation lies between two products on the stream, as in the second half of a transformer layer."""
    inside = set(span.nodes)
    for node in span.nodes:
        if op_name(node) not in _ACTIVATIONS or _dims(node) < _STREAM_DIMS:
            continue
        sources = [source for source in node.all_input_nodes if source in inside]
        users = [user for user in node.users if user in inside]
        if _reaches_product(sources, inside, forward=False) and _reaches_product(users, inside, forward=True):
            return True
    return False


def _reaches_product(frontier: Sequence[Node], inside: set[Node], *, forward: bool) -> bool:
    """Return True if a matrix product follows (or comes before) these nodes, with nothing but rearranging and scaling between."""
    waiting, seen = list(frontier), set(frontier)
    while waiting:
        node = waiting.pop()
        name = op_name(node)
        if name in PRODUCTS and name not in ATTENTION:
            return True
        if name in _BETWEEN:
            following = [other for other in (node.users if forward else node.all_input_nodes) if other in inside and other not in seen]
            waiting += following
            seen.update(following)
    return False


def _main_result(span: Span) -> Node | None:
    """Return the result that goes on with the stream: of those shaped like something that the block reads, the largest; else the last."""
    results = [node for node in span.results if isinstance(node.meta.get("val"), Tensor) and _dims(node) >= 2]
    read = {tuple(node.meta["val"].shape) for node in span.sources if node.meta["val"].is_floating_point()}
    going_on = [node for node in results if tuple(node.meta["val"].shape) in read]
    if going_on:
        return max(reversed(going_on), key=lambda node: node.meta["val"].numel())
    if results:
        return results[-1]
    last = span.nodes[-1]
    return last if isinstance(last.meta.get("val"), Tensor) and _dims(last) >= 2 else None


def _main_source(span: Span, result: Node | None) -> Node | None:
    """Return the tensor that the result comes from: one of its shape, or the first with as many dimensions, or with channels."""
    if result is None:
        return None
    sources = [node for node in span.sources if node.meta["val"].is_floating_point() and _dims(node) >= 2]
    shape = tuple(result.meta["val"].shape)
    same = [node for node in sources if tuple(node.meta["val"].shape) == shape]
    alike = [node for node in sources if _dims(node) == _dims(result)]
    return next(iter([*same, *alike, *sources]), None)


def _size(node: Node | None, coupling: Coupling) -> tuple[tuple[int, ...], int | None]:
    """Resolution and channels of a tensor."""
    if node is None:
        return (), None
    shape = [int(size) for size in node.meta["val"].shape]
    channel = _channel_dim(node, coupling)
    return tuple(size for dim, size in enumerate(shape) if dim not in (0, channel)), shape[channel]


def _channel_dim(node: Node, coupling: Coupling) -> int:
    """Return the dimension that a prunable group cuts, or one with labels, or 1 for images and the last one for other tensors."""
    usual = 1 if _dims(node) >= 4 else _dims(node) - 1
    outcome = coupling.outcomes.get(node)
    if outcome is None:
        return usual
    axes = {dim: axis for dim, axis in enumerate(outcome.outputs[0]) if dim and axis is not None}
    cut = [dim for dim, axis in axes.items() if coupling.count(axis)[1]]
    for found in (cut, list(axes)):
        if found:
            return usual if usual in found else found[-1]
    return usual


def _heads(span: Span) -> int:
    """Heads of the attention inside: the second dimension of its queries or of its weights."""
    found = 0
    for node in span.nodes:
        if op_name(node) not in ATTENTION or not node.all_input_nodes:
            continue
        value = node.all_input_nodes[0].meta.get("val")
        if isinstance(value, Tensor) and value.dim() == 4:
            found = max(found, int(value.shape[1]))
    return found


def _dims(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0
