"""Ops that read values: selections whose size the data decide, and numbers for Python code.

Only a program recorded on real tensors holds them. The tensors that are read stay whole. What is selected from, along other dimensions
(the channels of the rows that a mask selects), goes on.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.coupling.outcome import Outcome
from proxyprune.coupling.rules.joins import index
from proxyprune.coupling.rules.pointwise import pointwise
from proxyprune.coupling.rules.walk import Rule, Walk, in_place, kept_whole, ops, written_in_place
from proxyprune.tracing.nodes import arguments, tensor_argument
from proxyprune.tracing.values import read_values


def selection(walk: Walk, node: Node) -> Outcome:
    """nonzero, masked_select, unique and others: which entries they return, and how many, depends on every entry."""
    return kept_whole(walk, node, "decides what is selected in")


def number(walk: Walk, node: Node) -> Outcome:
    """item, tolist, equal: Python code reads the values."""
    return kept_whole(walk, node, "is read by Python code in")


def where(walk: Walk, node: Node) -> Outcome:
    """where(condition, a, b) is elementwise; where(condition) returns positions."""
    return selection(walk, node) if len(node.args) == 1 else pointwise(walk, node)


def masked_index(walk: Walk, node: Node) -> Outcome:
    """x[mask]: the dimensions that the mask covers are replaced by one of selected entries; the other ones go on."""
    keys = node.args[1]
    assert isinstance(keys, list | tuple)
    masks = [key for key in keys if isinstance(key, Node) and key.meta["val"].dtype in (torch.bool, torch.uint8)]
    if not masks:
        return index(walk, node)
    if any(not walk.shape(mask) for mask in masks):
        return selection(walk, node)
    source, looked_up, dim = tensor_argument(node, 0), 1, 0
    used: list[int] = []
    for key in keys:
        if not isinstance(key, Node):
            dim += 1
            continue
        ndim = len(walk.shape(key))
        covered = ndim if key in masks else 1
        looked_up = max(looked_up, 1 if key in masks else ndim)
        used += range(dim, dim + covered)
        dim += covered
        walk.pin(walk.axes(key), node, "decides what is selected in")
    axes = walk.axes(source)
    walk.pin([axes[position] for position in used], node, "is selected from in")
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [axis for position, axis in enumerate(axes) if position not in used]
    return Outcome(outputs=((*rest[:first], *(None,) * looked_up, *rest[first:]),), zero=walk.zero(source))


def masked_scatter(walk: Walk, node: Node) -> Outcome:
    """masked_scatter(x, mask, source): entries of x under the mask are replaced by those of source, in order.

    Where the mask was stretched along the last dimensions (every channel of a token is replaced), these go on, and meet those of the
    source. The other dimensions are filled by position.
    """
    target, mask, source = (tensor_argument(node, position) for position in range(3))
    stretched = _stretched(walk, target, mask, source)
    if not stretched:
        return kept_whole(walk, node, "is filled by position in")
    for tensor in (target, mask, source):
        walk.pin(walk.axes(tensor)[:-stretched], node, "is filled by position in")
    axes: list[Axis] = [None] * (len(walk.shape(target)) - stretched)
    for offset in range(stretched, 0, -1):
        meeting = [walk.axes(tensor)[-offset] for tensor in (target, mask, source) if walk.shape(tensor)[-offset] != 1]
        axes.append(walk.labels.unify(meeting, walk.where(node)) if meeting else None)
    outcome = Outcome(outputs=(tuple(axes),), zero=walk.zero(target) and walk.zero(source))
    return written_in_place(walk, node, outcome)


def _stretched(walk: Walk, target: Node, mask: Node, source: Node) -> int:
    """Return along how many of the last dimensions the mask repeats one entry, and the source has the length of the target."""
    value, count = mask.meta["val"], 0
    for offset in range(1, min(value.dim(), len(walk.shape(target)), len(walk.shape(source)) - 1) + 1):
        repeats = value.shape[-offset] == 1 or value.stride(-offset) == 0
        if not repeats or walk.shape(target)[-offset] != walk.shape(source)[-offset]:
            break
        count = offset
    return count


def index_add(walk: Walk, node: Node) -> Outcome:
    """index_add(x, dim, ids, source), index_copy: dimension dim is filled by number, the other ones meet those of the source."""
    target, ids, source = (tensor_argument(node, position) for position in (0, 2, 3))
    axes = list(walk.axes(target))
    if not axes or len(walk.axes(source)) != len(axes):
        return kept_whole(walk, node, "is filled by position in")
    dim = int(arguments(node)["dim"]) % len(axes)
    walk.pin((axes[dim], walk.axes(source)[dim], *walk.axes(ids)), node, "is filled by position in")
    for position, other in enumerate(walk.axes(source)):
        axes[position] = None if position == dim else walk.labels.unify([axes[position], other], walk.where(node))
    return written_in_place(walk, node, Outcome(outputs=(tuple(axes),), zero=walk.zero(target) and walk.zero(source)))


def index_fill(walk: Walk, node: Node) -> Outcome:
    """index_fill(x, dim, ids, value): rows along dim are filled by number with one value; other dimensions go on."""
    target, ids = tensor_argument(node, 0), tensor_argument(node, 2)
    axes = list(walk.axes(target))
    if not axes:
        return kept_whole(walk, node, "is filled by position in")
    dim = int(arguments(node)["dim"]) % len(axes)
    walk.pin((axes[dim], *walk.axes(ids)), node, "is filled by position in")
    axes[dim] = None
    return written_in_place(walk, node, Outcome(outputs=(tuple(axes),), zero=walk.zero(target) and node.args[3] in (0, 0.0)))


def scatter(walk: Walk, node: Node) -> Outcome:
    """scatter(x, dim, ids, source or value), with a reduction or not: dim is filled by number, the others meet where they are as long."""
    tensors = node.all_input_nodes
    target, dim = tensor_argument(node, 0), int(arguments(node)["dim"])
    shapes = [list(walk.shape(tensor)) for tensor in tensors]
    if not shapes[0] or any(len(shape) != len(shapes[0]) for shape in shapes):
        return kept_whole(walk, node, "is filled by position in")
    dim %= len(shapes[0])
    if any(shape[:dim] + shape[dim + 1 :] != shapes[0][:dim] + shapes[0][dim + 1 :] for shape in shapes):
        return kept_whole(walk, node, "is filled in part in")
    walk.pin([walk.axes(tensor)[dim] for tensor in tensors], node, "is filled by position in")
    axes = [
        None if position == dim else walk.labels.unify([walk.axes(tensor)[position] for tensor in tensors], walk.where(node))
        for position in range(len(shapes[0]))
    ]
    values = [tensor_argument(node, 3)] if isinstance(node.args[3], Node) else []
    zero = walk.zero(target) and (all(map(walk.zero, values)) if values else node.args[3] in (0, 0.0))
    return written_in_place(walk, node, Outcome(outputs=(tuple(axes),), zero=zero))


def drawn(walk: Walk, node: Node) -> Outcome:
    """multinomial: numbers are drawn with the probability that every entry gives."""
    return kept_whole(walk, node, "decides what is drawn in")


def loss_of_sequences(walk: Walk, node: Node) -> Outcome:
    """ctc_loss: classes and positions are looked up by number."""
    return kept_whole(walk, node, "is looked up by number in")


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("nonzero nonzero_numpy argwhere masked_select unique _unique _unique2 unique_dim unique_consecutive"), selection),
    **dict.fromkeys(ops("unique_dim_consecutive repeat_interleave_self"), selection),
    **dict.fromkeys(ops("item _local_scalar_dense is_nonzero equal allclose _is_all_true _is_any_true"), number),
    read_values.__name__: number,
    "aten.where": where,
    **dict.fromkeys(ops("masked_scatter masked_scatter_"), masked_scatter),
    **dict.fromkeys(in_place(ops("index_add index_copy")), index_add),
    **dict.fromkeys(in_place(ops("index_fill")), index_fill),
    **dict.fromkeys(in_place(ops("scatter scatter_add scatter_reduce")), scatter),
    "aten.multinomial": drawn,
    **dict.fromkeys(ops("ctc_loss _ctc_loss"), loss_of_sequences),
    "aten.index": masked_index,
}
