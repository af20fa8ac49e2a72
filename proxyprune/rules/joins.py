"""Ops that join, cut and pick along a dimension: cat, stack, split, chunk, slice, select, pad, roll, indexing."""

from __future__ import annotations

import operator

import numpy as np
import torch
from torch.fx import Node

from proxyprune.axes import FIXED, Axis
from proxyprune.rules.base import (
    Axes,
    Outcome,
    Rule,
    Size,
    Walk,
    arguments,
    fixed,
    op_name,
    output_shapes,
    position_of,
)


def concatenate(walk: Walk, node: Node) -> Outcome:
    """cat(tensors, dim): labels one after another along dim; other dimensions meet."""
    values = arguments(node)
    tensors = [tensor for tensor in values["tensors"] if walk.shape(tensor) != (0,)]
    shape = output_shapes(node)[0]
    dim = int(values.get("dim", 0)) % len(shape)
    axes: list[Axis] = []
    for position in range(len(shape)):
        meeting = [walk.axes(tensor)[position] for tensor in tensors]
        if position != dim:
            axes.append(walk.labels.unify(meeting, walk.where(node)))
        elif all(axis is None for axis in meeting):
            axes.append(None)
        else:
            runs = [
                np.full(walk.shape(tensor)[dim], FIXED, np.int64) if axis is None else axis
                for tensor, axis in zip(tensors, meeting, strict=True)
            ]
            axes.append(np.concatenate(runs))
    return Outcome(outputs=(tuple(axes),), zero=all(walk.zeros.get(tensor, False) for tensor in tensors))


def stack(walk: Walk, node: Node) -> Outcome:
    """stack(tensors, dim): a new fixed dimension."""
    values = arguments(node)
    tensors = values["tensors"]
    where = walk.where(node)
    axes = [
        walk.labels.unify([walk.axes(tensor)[position] for tensor in tensors], where) for position in range(len(walk.shape(tensors[0])))
    ]
    axes.insert(int(values.get("dim", 0)) % (len(axes) + 1), None)
    return Outcome(outputs=(tuple(axes),), zero=all(walk.zeros.get(tensor, False) for tensor in tensors))


def split(walk: Walk, node: Node) -> Outcome:
    """split, chunk, tensor_split, unbind, unsafe_split: runs along a dimension.

    Runs of equal length stay equal (position k leaves in all of them), because the source usually says "in halves". Runs of unequal
    length shrink on their own, and the sizes in the call follow. Runs of length 1 are single entries that code names one by one: pinned.
    """
    values = arguments(node)
    source = values.get("self")
    if source is None:
        source = values["tensor"]
    shape, axes = walk.shape(source), walk.axes(source)
    dim = int(values.get("dim", 0)) % len(shape)
    axis, where, zero = axes[dim], walk.where(node), walk.zeros.get(source, False)
    outputs = output_shapes(node)
    if op_name(node) == "aten.unbind":
        walk.labels.pin(axis, f"is taken apart entry by entry in {where}")
        rest = axes[:dim] + axes[dim + 1 :]
        return Outcome(outputs=(rest,) * len(outputs), zero=zero)
    lengths = [output[dim] for output in outputs]
    if axis is None:
        return Outcome(outputs=(axes,) * len(outputs), zero=zero)
    runs = np.split(axis, np.cumsum(lengths)[:-1])
    if len(set(lengths)) == 1:
        if lengths[0] == 1:
            walk.labels.pin(axis, f"is taken apart entry by entry in {where}")
        walk.labels.tie_runs(axis, len(lengths), where)
    elif op_name(node) == "aten.chunk":
        walk.labels.pin(axis, f"is cut into unequal chunks in {where}")
    pieces = tuple((*axes[:dim], np.ascontiguousarray(run), *axes[dim + 1 :]) for run in runs)
    return Outcome(outputs=pieces, sizes=_split_sizes(node, pieces, dim, lengths), zero=zero)


def _split_sizes(node: Node, pieces: tuple[Axes, ...], dim: int, lengths: list[int]) -> dict[int | str, Size | tuple[Size, ...]]:
    runs: list[Size] = [length if piece[dim] is None else piece[dim] for piece, length in zip(pieces, lengths, strict=True)]  # type: ignore[misc]
    overload = str(node.target)
    if "sections" in overload or "split_with_sizes" in overload or overload.endswith("split.sizes"):
        return {1: tuple(runs)}
    if op_name(node) in ("aten.split", "aten.unsafe_split"):
        return {1: runs[0]}
    return {}


def get_item(walk: Walk, node: Node) -> Outcome:
    """One output of an op that returns several."""
    source, index = node.args[:2]
    assert isinstance(source, Node)
    return Outcome(outputs=(walk.outputs[source][int(index)],), zero=walk.zeros.get(source, False))  # type: ignore[arg-type]


def slice_run(walk: Walk, node: Node) -> Outcome:
    """slice(x, dim, start, end, step), narrow: a run of positions; with a step, whole strides leave together."""
    values = arguments(node)
    source = values["self"]
    shape, axes = walk.shape(source), list(walk.axes(source))
    dim = int(values.get("dim", 0)) % len(shape)
    axis, zero = axes[dim], walk.zeros.get(source, False)
    if op_name(node) == "aten.narrow":
        if not isinstance(values["start"], int):
            walk.pin_all(node, f"is cut at a data-dependent position in {walk.where(node)}")
            return Outcome(outputs=(fixed(shape),))
        start, end, step = int(values["start"]), int(values["start"]) + int(values["length"]), 1
    else:
        start, end, step = values.get("start"), values.get("end"), int(values.get("step", 1))
    start, end, step = slice(start, end, step).indices(shape[dim])
    if axis is None:
        return Outcome(outputs=(tuple(axes),), zero=zero)
    if step > 1:
        if shape[dim] % step:
            walk.labels.pin(axis, f"is cut in strides that do not divide it in {walk.where(node)}")
        else:
            walk.labels.tie_within_runs(axis, shape[dim] // step, walk.where(node))
    axes[dim] = np.ascontiguousarray(axis[start:end:step])
    sizes: dict[int | str, Size | tuple[Size, ...]] = {}
    if step == 1 and op_name(node) == "aten.slice":
        if start > 0:
            sizes[position_of(node, "start")] = axis[:start]
        if end < shape[dim]:
            sizes[position_of(node, "end")] = axis[:end]
    elif op_name(node) == "aten.narrow":
        sizes = {position_of(node, "start"): axis[:start], position_of(node, "length"): axis[start:end]}
    return Outcome(outputs=(tuple(axes),), sizes=sizes, zero=zero)


def select(walk: Walk, node: Node) -> Outcome:
    """select(x, dim, index): one position by its number, so the dimension cannot shrink."""
    values = arguments(node)
    source = values["self"]
    axes = list(walk.axes(source))
    dim = int(values["dim"]) % len(axes)
    walk.labels.pin(axes.pop(dim), f"is read at a fixed position in {walk.where(node)}")
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


def pad(walk: Walk, node: Node) -> Outcome:
    """pad(x, widths, mode, value): new fixed positions before and after."""
    values = arguments(node)
    source, widths = values["self"], values["pad"]
    shape, axes = walk.shape(source), list(walk.axes(source))
    constant = values.get("mode", "constant") == "constant" or op_name(node) == "aten.constant_pad_nd"
    for offset in range(len(widths) // 2):
        before, after = int(widths[2 * offset]), int(widths[2 * offset + 1])
        dim = len(shape) - 1 - offset
        axis = axes[dim]
        if axis is None or not (before or after):
            continue
        if not constant or before < 0 or after < 0:
            walk.labels.pin(axis, f"is padded in {walk.where(node)}")
            axes[dim] = None
            continue
        axes[dim] = np.concatenate([np.full(before, FIXED, np.int64), axis, np.full(after, FIXED, np.int64)])
    value = values.get("value")
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False) and value in (None, 0, 0.0))


def roll(walk: Walk, node: Node) -> Outcome:
    """roll(x, shifts, dims): a labelled dimension that rolls changes its order, so it is pinned."""
    values = arguments(node)
    source = values["self"]
    axes = walk.axes(source)
    dims = values.get("dims") or range(len(axes))
    for dim in [dims] if isinstance(dims, int) else dims:
        walk.labels.pin(axes[int(dim)], f"is rolled in {walk.where(node)}")
    return Outcome(outputs=(axes,), zero=walk.zeros.get(source, False))


def flip(walk: Walk, node: Node) -> Outcome:
    """flip(x, dims): labels in reverse."""
    source, dims = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(dims, list | tuple)
    axes = list(walk.axes(source))
    for dim in dims:
        axis = axes[int(dim)]  # type: ignore[call-overload]
        axes[int(dim)] = None if axis is None else np.ascontiguousarray(axis[::-1])  # type: ignore[call-overload]
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


def embedding(walk: Walk, node: Node) -> Outcome:
    """embedding(w, ids): w [entries, channels]; entries are looked up by number, so they stay."""
    values = arguments(node)
    weight, ids = values["weight"], values["indices"]
    walk.labels.pin(walk.axes(weight)[0], f"is looked up by number in {walk.where(node)}")
    return Outcome(outputs=((*walk.axes(ids), walk.axes(weight)[1]),), zero=walk.zeros.get(weight, False))


def index(walk: Walk, node: Node) -> Outcome:
    """x[ids]: indexed dimensions are pinned, the others go on."""
    source, indices = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(indices, list | tuple)
    axes, shape = walk.axes(source), output_shapes(node)[0]
    used = [dim for dim, item in enumerate(indices) if item is not None]
    keys = [item for item in indices if isinstance(item, Node)]
    for key in keys:
        for axis in walk.axes(key):
            walk.labels.pin(axis, f"holds indices for {walk.where(node)}")
    boolean = any(key.meta["val"].dtype == torch.bool for key in keys)
    for dim in used:
        walk.labels.pin(axes[dim], f"is looked up by number in {walk.where(node)}")
    if boolean:
        walk.pin_all(node, f"is selected by a mask in {walk.where(node)}")
        return Outcome(outputs=(fixed(shape),))
    looked_up = max(len(walk.shape(key)) for key in keys)
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [axis for dim, axis in enumerate(axes) if dim not in used]
    return Outcome(outputs=((*rest[:first], *(None,) * looked_up, *rest[first:]),), zero=walk.zeros.get(source, False))


def index_select(walk: Walk, node: Node) -> Outcome:
    """index_select, gather, take_along_dim: the indexed dimension is pinned; for gather every dimension of the index must match."""
    values = arguments(node)
    source = values["self"]
    axes = list(walk.axes(source))
    dim = int(values["dim"]) % len(axes)
    walk.labels.pin(axes[dim], f"is looked up by number in {walk.where(node)}")
    axes[dim] = None
    if op_name(node) == "aten.gather":
        ids = values["index"]
        axes = [
            walk.labels.unify([axis, walk.axes(ids)[position]], walk.where(node)) if position != dim else None
            for position, axis in enumerate(axes)
        ]
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


def unfold_image(walk: Walk, node: Node) -> Outcome:
    """im2col: [n, c, h, w] -> [n, c * kernel, positions]; all taps of a channel leave together."""
    source, kernel = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(kernel, list | tuple)
    axes = walk.axes(source)
    taps = int(np.prod([int(size) for size in kernel]))  # type: ignore[call-overload]
    channels = axes[-3]
    merged = None if channels is None else np.repeat(channels, taps)
    return Outcome(outputs=((*axes[:-3], merged, None),), zero=walk.zeros.get(source, False))


def gate(walk: Walk, node: Node) -> Outcome:
    """glu(x, dim): the first half times the sigmoid of the second; position k leaves in both."""
    values = arguments(node)
    source = values["self"]
    axes = list(walk.axes(source))
    dim = int(values.get("dim", -1)) % len(axes)
    axis = axes[dim]
    if axis is not None:
        axes[dim] = np.ascontiguousarray(walk.labels.tie_runs(axis, 2, walk.where(node)))
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


def outer(walk: Walk, node: Node) -> Outcome:
    """outer(a, b): [a, b]."""
    first, second = node.args[:2]
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    return Outcome(outputs=((walk.axes(first)[0], walk.axes(second)[0]),))


def triangle(walk: Walk, node: Node) -> Outcome:
    """triu, tril: the last two dimensions are told apart by position."""
    source = node.args[0]
    assert isinstance(source, Node)
    axes = walk.axes(source)
    for axis in axes[-2:]:
        walk.labels.pin(axis, f"is cut to a triangle in {walk.where(node)}")
    return Outcome(outputs=((*axes[:-2], None, None),), zero=walk.zeros.get(source, False))


def meshgrid(walk: Walk, node: Node) -> Outcome:
    """Coordinates: nothing to cut."""
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.cat", "aten.concat", "aten.concatenate"), concatenate),
    "aten.stack": stack,
    **dict.fromkeys(
        ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind", "aten.unsafe_split", "aten.unsafe_chunk", "aten.unsafe_split_with_sizes"), split
    ),
    operator.getitem.__name__: get_item,
    "aten.slice": slice_run,
    "aten.narrow": slice_run,
    "aten.select": select,
    **dict.fromkeys(("aten.pad", "aten.constant_pad_nd"), pad),
    "aten.roll": roll,
    "aten.flip": flip,
    "aten.embedding": embedding,
    "aten.index": index,
    **dict.fromkeys(("aten.index_select", "aten.gather"), index_select),
    "aten.im2col": unfold_image,
    "aten.glu": gate,
    "aten.outer": outer,
    **dict.fromkeys(("aten.triu", "aten.tril", "aten.triu_", "aten.tril_"), triangle),
    "aten.meshgrid": meshgrid,
}  # fmt: skip
