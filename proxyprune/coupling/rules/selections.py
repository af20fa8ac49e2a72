"""Ops that read values: selections whose size the data decide, and numbers for Python code.

Only a program recorded on real tensors holds them. The tensors that are read stay whole. What is selected from, along other dimensions
(the channels of the rows that a mask selects), goes on.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from proxyprune.coupling.outcome import Outcome
from proxyprune.coupling.rules.joins import index
from proxyprune.coupling.rules.pointwise import pointwise
from proxyprune.coupling.rules.walk import Rule, Walk, kept_whole, ops
from proxyprune.tracing.nodes import tensor_argument
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
    source, used, looked_up, dim = tensor_argument(node, 0), [], 1, 0
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


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("nonzero nonzero_numpy argwhere masked_select unique _unique _unique2 unique_dim unique_consecutive"), selection),
    **dict.fromkeys(ops("unique_dim_consecutive repeat_interleave_self"), selection),
    **dict.fromkeys(ops("item _local_scalar_dense is_nonzero equal allclose"), number),
    read_values.__name__: number,
    "aten.where": where,
    "aten.index": masked_index,
}
