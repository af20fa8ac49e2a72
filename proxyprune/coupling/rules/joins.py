"""Ops that join, cut and pick along a dimension: cat, stack, split, chunk, slice, select, pad, roll, indexing."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from proxyprune.coupling.axes import FIXED, Axis, LabelArray
from proxyprune.coupling.outcome import Outcome, Size, Sizes
from proxyprune.coupling.rules.walk import Rule, Walk, dims_of, fixed, kept_whole, ops, spans, sum_is_zero, written_in_place
from proxyprune.tracing.nodes import arguments, integers, op_name, output_shapes, position_of, tensor_argument


def concatenate(walk: Walk, node: Node, dim: int | None = None) -> Outcome:
    """cat(tensors, dim): labels one after another along dim; other dimensions meet."""
    values = arguments(node)
    tensors = [tensor for tensor in values["tensors"] if walk.shape(tensor) != (0,)]
    shape = output_shapes(node)[0]
    dim = int(values["dim"] if dim is None else dim) % len(shape)
    axes: list[Axis] = []
    for position in range(len(shape)):
        meeting = [walk.axes(tensor)[position] for tensor in tensors]
        if position != dim:
            axes.append(walk.labels.unify(meeting, walk.where(node)))
        elif all(axis is None for axis in meeting):
            axes.append(None)
        else:
            axes.append(_end_to_end([walk.shape(tensor)[dim] for tensor in tensors], meeting))
    return Outcome(outputs=(tuple(axes),), zero=all(walk.zero(tensor) for tensor in tensors))


def _end_to_end(sizes: list[int], axes: list[Axis]) -> LabelArray:
    runs = [np.full(size, FIXED, np.int64) if axis is None else axis for size, axis in zip(sizes, axes, strict=True)]
    return np.concatenate(runs)


def concatenate_along(walk: Walk, node: Node) -> Outcome:
    """vstack, hstack, dstack (dim 0, 1, 2) of tensors that have that dimension."""
    dim = _STACKS[op_name(node)]
    if any(len(walk.shape(tensor)) < max(dim + 1, 2) for tensor in node.all_input_nodes):
        return kept_whole(walk, node, "gets a new dimension in")
    return concatenate(walk, node, dim)


_STACKS = dict(zip(ops("vstack row_stack hstack dstack"), (0, 0, 1, 2), strict=True))


def stack(walk: Walk, node: Node) -> Outcome:
    """stack(tensors, dim): a new fixed dimension."""
    values = arguments(node)
    tensors = values["tensors"]
    where = walk.where(node)
    ndim = len(walk.shape(tensors[0]))
    axes = [walk.labels.unify([walk.axes(tensor)[position] for tensor in tensors], where) for position in range(ndim)]
    axes.insert(int(values.get("dim", 0)) % (ndim + 1), None)
    return Outcome(outputs=(tuple(axes),), zero=all(walk.zero(tensor) for tensor in tensors))


def split(walk: Walk, node: Node) -> Outcome:
    """split, chunk, tensor_split, unsafe_split: runs along a dimension.

    Runs of equal length stay equal (position k leaves in all of them), because the source usually says "in halves". Runs of unequal
    length shrink on their own where the call lists their sizes. Runs of length 1 are single entries that code names one by one: pinned.
    """
    source = tensor_argument(node, 0)
    axes = walk.axes(source)
    dim = int(arguments(node).get("dim", 0)) % len(axes)
    axis, where, zero = axes[dim], walk.where(node), walk.zero(source)
    lengths = [output[dim] for output in output_shapes(node)]
    if axis is None:
        return Outcome(outputs=(axes,) * len(lengths), zero=zero)
    runs = np.split(axis, np.cumsum(lengths)[:-1])
    if len(set(lengths)) == 1:
        walk.labels.tie_runs(axis, len(lengths), where)
    elif not _lists_runs(node):
        walk.labels.pin(axis, f"is cut into unequal chunks in {where}")
    pieces = [_piece(walk, run, f"is taken apart entry by entry in {where}") for run in runs]
    outputs = tuple((*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces)
    return Outcome(outputs=outputs, sizes=_split_sizes(node, axis, pieces, lengths), zero=zero)


def _piece(walk: Walk, run: LabelArray, reason: str) -> Axis:
    """Return a run of positions as an axis; a run of one is fixed, because it would have no size left, or be broadcast."""
    if len(run) > 1:
        return np.ascontiguousarray(run)
    walk.labels.pin(run, reason)
    return None


def _lists_runs(node: Node) -> bool:
    """Return True if the call holds the size, or the end, of each run."""
    return isinstance(node.args[1], list | tuple) if len(node.args) > 1 else False


def _split_sizes(node: Node, axis: LabelArray, pieces: Sequence[Axis], lengths: list[int]) -> Sizes:
    runs: tuple[Size, ...] = tuple(length if piece is None else piece for piece, length in zip(pieces, lengths, strict=True))
    if op_name(node) == "aten.tensor_split":
        return {1: tuple(axis[:end] for end in np.cumsum(lengths)[:-1].tolist())} if _lists_runs(node) else {}
    if _lists_runs(node):
        return {1: runs}
    return {1: runs[0]} if op_name(node) in ("aten.split", "aten.unsafe_split") else {}


def unbind(walk: Walk, node: Node) -> Outcome:
    """unbind(x, dim): one tensor for each entry, so the dimension cannot shrink."""
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dim = int(arguments(node)["dim"]) % len(axes)
    walk.pin([axes.pop(dim)], node, "is taken apart entry by entry in")
    return Outcome(outputs=(tuple(axes),) * len(output_shapes(node)), zero=walk.zero(source))


def get_item(walk: Walk, node: Node) -> Outcome:
    """One output of an op that returns several."""
    source = tensor_argument(node, 0)
    (index,) = integers(node.args[1])
    return Outcome(outputs=(walk.outputs[source][index],), zero=walk.zero(source))


def slice_run(walk: Walk, node: Node) -> Outcome:
    """slice(x, dim, start, end, step): a run of positions; with a step, whole strides leave together."""
    values = arguments(node)
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dim = int(values["dim"]) % len(axes)
    axis, size, zero = axes[dim], walk.shape(source)[dim], walk.zero(source)
    if axis is None:
        return Outcome(outputs=(tuple(axes),), zero=zero)
    start, end, step = slice(values["start"], values["end"], int(values["step"])).indices(size)
    if step > 1 and not (size % step or start >= step or (end < size and end % step)):
        walk.labels.tie_within_runs(axis, size // step, walk.where(node))
    elif step > 1:
        walk.labels.pin(axis, f"is cut in strides that do not divide it in {walk.where(node)}")
    axes[dim] = _piece(walk, axis[start:end:step], f"is read at a fixed position in {walk.where(node)}")
    sizes: Sizes = {}
    if start >= step:
        sizes[position_of(node, "start")] = axis[:start]
    if end < size:
        sizes[position_of(node, "end")] = axis[:end]
    return Outcome(outputs=(tuple(axes),), sizes=sizes, zero=zero)


def narrow(walk: Walk, node: Node) -> Outcome:
    """narrow(x, dim, start, length): a run of positions."""
    values = arguments(node)
    if not isinstance(values["start"], int):
        return kept_whole(walk, node, "is cut at a data-dependent position in")
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dim = int(values["dim"]) % len(axes)
    axis, zero = axes[dim], walk.zero(source)
    if axis is None:
        return Outcome(outputs=(tuple(axes),), zero=zero)
    start = values["start"] % len(axis)
    run = axis[start : start + int(values["length"])]
    axes[dim] = _piece(walk, run, f"is read at a fixed position in {walk.where(node)}")
    sizes: Sizes = {position_of(node, "start"): axis[:start], position_of(node, "length"): run}
    return Outcome(outputs=(tuple(axes),), sizes=sizes, zero=zero)


def select(walk: Walk, node: Node) -> Outcome:
    """select(x, dim, index): one position by its number, so the dimension cannot shrink."""
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dim = int(arguments(node)["dim"]) % len(axes)
    walk.pin([axes.pop(dim)], node, "is read at a fixed position in")
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


def pad(walk: Walk, node: Node) -> Outcome:
    """pad(x, widths, mode, value): new fixed positions before and after."""
    values = arguments(node)
    source, widths = tensor_argument(node, 0), integers(values["pad"])
    axes = list(walk.axes(source))
    constant = values.get("mode", "constant") == "constant"
    for offset, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), start=1):
        axis = axes[-offset]
        if axis is None or not (before or after):
            continue
        if not constant or before < 0 or after < 0:
            walk.pin([axis], node, "is padded in")
            axes[-offset] = None
            continue
        axes[-offset] = np.concatenate([np.full(before, FIXED, np.int64), axis, np.full(after, FIXED, np.int64)])
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source) and values.get("value") in (None, 0, 0.0))


def roll(walk: Walk, node: Node) -> Outcome:
    """roll(x, shifts, dims): a labelled dimension that rolls changes its order, so it is pinned; no dims means all."""
    source = tensor_argument(node, 0)
    axes = walk.axes(source)
    walk.pin([axes[dim] for dim in dims_of(arguments(node)["dims"], len(axes))], node, "is rolled in")
    return Outcome(outputs=(axes,), zero=walk.zero(source))


def flip(walk: Walk, node: Node) -> Outcome:
    """flip(x, dims): labels in reverse."""
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dims = arguments(node).get("dims", {"aten.fliplr": (1,), "aten.flipud": (0,)}.get(op_name(node)))
    for dim in integers(dims):
        axis = axes[dim]
        axes[dim] = None if axis is None else np.ascontiguousarray(axis[::-1])
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


def embedding(walk: Walk, node: Node) -> Outcome:
    """embedding(w, ids): w [entries, channels]; entries are looked up by number, so they stay."""
    weight, ids = tensor_argument(node, "weight"), tensor_argument(node, "indices")
    walk.pin(walk.axes(weight)[:1], node, "is looked up by number in")
    return Outcome(outputs=((*walk.axes(ids), walk.axes(weight)[1]),), zero=_looked_up_zero(walk, weight, ids))


def _looked_up_zero(walk: Walk, source: Node, ids: Node) -> bool:
    """Zeros are found at every index, but an index that was dropped is itself read as something."""
    return walk.zero(source) and not walk.open(walk.axes(ids))


def embedding_bag(walk: Walk, node: Node) -> Outcome:
    """embedding_bag(w, ids, offsets): sums, means or maxima of rows of w [entries, channels]."""
    weight = tensor_argument(node, "weight")
    entries, channels = walk.axes(weight)
    walk.pin([entries], node, "is looked up by number in")
    for other in node.all_input_nodes:
        if other is not weight:
            walk.pin(walk.axes(other), node, "holds indices for")
    others = (fixed(shape) for shape in output_shapes(node)[1:])
    return Outcome(outputs=((None, channels), *others), zero=walk.zero(weight))


def index(walk: Walk, node: Node) -> Outcome:
    """x[ids]: indexed dimensions are pinned, the others go on."""
    source, indices = tensor_argument(node, 0), _indices(node)
    axes = walk.axes(source)
    keys = [key for key in indices if key is not None]
    if any(key.meta["val"].dtype in (torch.bool, torch.uint8) for key in keys):
        return kept_whole(walk, node, "is selected by a mask in")
    used = [dim for dim, item in enumerate(indices) if item is not None]
    for key in keys:
        walk.pin(walk.axes(key), node, "holds indices for")
    walk.pin([axes[dim] for dim in used], node, "is looked up by number in")
    looked_up = max(len(walk.shape(key)) for key in keys)
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [axis for dim, axis in enumerate(axes) if dim not in used]
    return Outcome(outputs=((*rest[:first], *(None,) * looked_up, *rest[first:]),), zero=walk.zero(source))


def _indices(node: Node) -> list[Node | None]:
    given: Any = node.args[1]
    return [item if isinstance(item, Node) else None for item in given]


def index_put(walk: Walk, node: Node) -> Outcome:
    """x[ids] = values, or += with `accumulate`: indexed dimensions are pinned, the others meet those of the values."""
    source, values, indices = tensor_argument(node, 0), tensor_argument(node, "values"), _indices(node)
    axes = list(walk.axes(source))
    keys = [key for key in indices if key is not None]
    used = [dim for dim, item in enumerate(indices) if item is not None]
    if not keys or any(key.meta["val"].dtype in (torch.bool, torch.uint8) for key in keys) or used != list(range(used[0], used[-1] + 1)):
        return kept_whole(walk, node, "is written by position in")
    for key in keys:
        walk.pin(walk.axes(key), node, "holds indices for")
    walk.pin([axes[dim] for dim in used], node, "is written by position in")
    looked_up = np.broadcast_shapes(*(walk.shape(key) for key in keys))
    shape = [size for dim, size in enumerate(walk.shape(source)) if dim not in used]
    shape[used[0] : used[0]] = looked_up
    written = [axis for dim, axis in enumerate(axes) if dim not in used]
    written[used[0] : used[0]] = [None] * len(looked_up)
    own = walk.axes(values)
    for offset in range(1, len(own) + 1):
        if spans(walk, values, shape, offset):
            walk.labels.equate(own[-offset], written[-offset], walk.where(node))
    result = tuple(None if dim in used else axis for dim, axis in enumerate(axes))
    zero = walk.zero(source) and sum_is_zero(walk, tuple(written), shape, [values])
    return written_in_place(walk, node, Outcome(outputs=(result,), zero=zero))


def index_select(walk: Walk, node: Node) -> Outcome:
    """index_select(x, dim, ids): the indexed dimension is pinned."""
    source, ids = tensor_argument(node, 0), tensor_argument(node, "index")
    axes = list(walk.axes(source))
    if not axes:
        return kept_whole(walk, node, "is looked up by number in")
    dim = int(arguments(node)["dim"]) % len(axes)
    walk.pin([axes[dim], *walk.axes(ids)], node, "is looked up by number in")
    axes[dim] = None
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


def gather(walk: Walk, node: Node) -> Outcome:
    """gather(x, dim, ids), take_along_dim: the indexed dimension is pinned, every other one meets that of the indices."""
    values = arguments(node)
    source, ids = tensor_argument(node, 0), tensor_argument(node, 2 if op_name(node) == "aten.gather" else 1)
    axes, others = walk.axes(source), walk.axes(ids)
    if values.get("dim") is None or len(axes) != len(others) or not axes:
        return kept_whole(walk, node, "is looked up by number in")
    dim = int(values["dim"]) % len(axes)
    walk.pin((axes[dim], others[dim]), node, "is looked up by number in")
    result = list(axes)
    result[dim] = None
    for position, (own, other) in enumerate(zip(axes, others, strict=True)):
        if position != dim:
            result[position] = _meet_index(walk, node, own, other, position)
    return Outcome(outputs=(tuple(result),), zero=walk.zero(source))


def _meet_index(walk: Walk, node: Node, own: Axis, other: Axis, dim: int) -> Axis:
    """Dimensions of equal size meet; take_along_dim stretches a size of 1; of a shorter index only the first entries are read."""
    sizes = {walk.shape(source)[dim] for source in node.all_input_nodes}
    if len(sizes) == 1:
        return walk.labels.unify([own, other], walk.where(node))
    if op_name(node) == "aten.take_along_dim":
        return other if own is None else own
    walk.pin((own, other), node, "is read in part in")
    return None


def gate(walk: Walk, node: Node) -> Outcome:
    """glu(x, dim): the first half times the sigmoid of the second; position k leaves in both."""
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dim = int(arguments(node)["dim"]) % len(axes)
    axis = axes[dim]
    if axis is not None:
        axes[dim] = _piece(walk, walk.labels.tie_runs(axis, 2, walk.where(node)), f"is a gate of one channel in {walk.where(node)}")
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


def triangle(walk: Walk, node: Node) -> Outcome:
    """triu, tril: the last two dimensions are distinguished by position."""
    source = tensor_argument(node, 0)
    axes = walk.axes(source)
    walk.pin(axes[-2:], node, "is cut to a triangle in")
    return Outcome(outputs=((*axes[:-2], None, None),), zero=walk.zero(source))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("cat concat concatenate"), concatenate),
    **dict.fromkeys(_STACKS, concatenate_along),
    "aten.stack": stack,
    **dict.fromkeys(ops("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unsafe_split_with_sizes"), split),
    "aten.unbind": unbind,
    operator.getitem.__name__: get_item,
    "aten.slice": slice_run,
    "aten.narrow": narrow,
    "aten.select": select,
    **dict.fromkeys(ops("pad constant_pad_nd"), pad),
    "aten.roll": roll,
    **dict.fromkeys(ops("flip fliplr flipud"), flip),
    "aten.embedding": embedding,
    "aten.embedding_bag": embedding_bag,
    "aten.index": index,
    **dict.fromkeys(ops("index_put index_put_"), index_put),
    "aten.index_select": index_select,
    **dict.fromkeys(ops("gather take_along_dim"), gather),
    "aten.glu": gate,
    **dict.fromkeys(ops("triu tril triu_ tril_"), triangle),
}
