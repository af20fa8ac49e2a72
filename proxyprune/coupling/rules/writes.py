"""Ops that write rows or entries of a tensor by number: scatter, index_add, index_copy, index_fill. None of them costs MACs."""

from __future__ import annotations

from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.coupling.outcome import Outcome
from proxyprune.coupling.rules.walk import Rule, Walk, in_place, kept_whole, ops, written_in_place
from proxyprune.tracing.nodes import arguments, tensor_argument


def scatter(walk: Walk, node: Node) -> Outcome:
    """scatter(x, dim, ids, source or number): entries along `dim` are written by number; every other dimension meets those of the others.

    Where ids or source are smaller than x along another dimension, only its first entries are written, so that dimension stays whole.
    """
    values = arguments(node)
    target, ids = tensor_argument(node, "self"), tensor_argument(node, "index")
    source = values.get("src")
    tensors = [target, ids, *([source] if isinstance(source, Node) else [])]
    if len({len(walk.shape(tensor)) for tensor in tensors}) > 1 or not walk.shape(target):
        return kept_whole(walk, node, "is written by number in")
    dim = int(values["dim"]) % len(walk.shape(target))
    result: list[Axis] = []
    for position in range(len(walk.shape(target))):
        axes = [walk.axes(tensor)[position] for tensor in tensors]
        if position != dim and len({walk.shape(tensor)[position] for tensor in tensors}) == 1:
            result.append(walk.labels.unify(axes, walk.where(node)))
            continue
        walk.pin(axes, node, "is written by number in")
        result.append(None)
    zero = walk.zero(target) and _writes_zero(walk, source if isinstance(source, Node) else values.get("value"))
    return written_in_place(walk, node, Outcome(outputs=(tuple(result),), zero=zero))


def write_rows(walk: Walk, node: Node) -> Outcome:
    """index_add, index_copy(x, dim, ids, source), index_fill(x, dim, ids, value): rows along `dim` are written by number."""
    values = arguments(node)
    target, ids = tensor_argument(node, "self"), tensor_argument(node, "index")
    written = values.get("source", values.get("value"))
    axes = list(walk.axes(target))
    if not axes:
        return kept_whole(walk, node, "is written by number in")
    dim = int(values["dim"]) % len(axes)
    walk.pin([axes[dim], *walk.axes(ids)], node, "is written by number in")
    axes[dim] = None
    if isinstance(written, Node) and len(walk.shape(written)) == len(axes):
        for position, axis in enumerate(walk.axes(written)):
            walk.labels.equate(axes[position], axis, walk.where(node))
    zero = walk.zero(target) and _writes_zero(walk, written)
    return written_in_place(walk, node, Outcome(outputs=(tuple(axes),), zero=zero))


def _writes_zero(walk: Walk, value: object) -> bool:
    return walk.zero(value) if isinstance(value, Node) else isinstance(value, int | float) and value == 0


RULES: dict[str, Rule] = {
    **dict.fromkeys(in_place(ops("scatter scatter_add scatter_reduce")), scatter),
    **dict.fromkeys(in_place(ops("index_add index_copy index_fill")), write_rows),
}
