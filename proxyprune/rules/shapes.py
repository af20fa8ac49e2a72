"""Ops that rearrange dimensions: reshapes, permutations, expansion.

A reshape splits and merges dimensions. Both sides are factored into a common sequence; a dimension that splits into several factors can
shrink along one of them only (heads, or head_dim). Where labels already repeat along all factors but one, that one is it. Where the
choice is open, the scouting pass gives every factor its own labels, watches which of them get pinned further on (a head dimension in
attention, the 3 of a fused qkv that is unbound), and the couple stage chooses among the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch.fx import Node

from proxyprune.axes import FIXED, Axis, LabelArray
from proxyprune.rules.base import (
    Axes,
    Factored,
    Outcome,
    Rule,
    Size,
    Walk,
    arguments,
    op_name,
    output_shapes,
    repeat_whole,
    sizes_of,
)


def reshape(walk: Walk, node: Node) -> Outcome:
    """view, reshape, flatten, unflatten: anything that keeps the order of elements."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape = output_shapes(node)[0]
    axes = reshape_axes(walk, node, walk.axes(source), walk.shape(source), shape)
    return Outcome(outputs=(axes,), sizes=_size_argument(node, sizes_of(shape, axes)), zero=walk.zeros.get(source, False))


def _size_argument(node: Node, sizes: tuple[Size, ...]) -> dict[int | str, Size | tuple[Size, ...]]:
    if op_name(node) in ("aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_alias"):
        return {1: sizes}
    if op_name(node) == "aten.unflatten":
        dim = int(node.args[1]) % (len(sizes) - len(node.args[2]) + 1)  # type: ignore[arg-type]
        return {2: sizes[dim : dim + len(node.args[2])]}  # type: ignore[arg-type]
    return {}


def reshape_axes(walk: Walk, node: Node, axes: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    """Axes after a reshape from shape `old` to shape `new`."""
    result: list[Axis] = [None] * len(new)
    for old_dims, new_dims in _aligned(old, new):
        factors = _common_factors([old[dim] for dim in old_dims], [new[dim] for dim in new_dims])
        if factors is None:
            for dim in old_dims:
                walk.labels.pin(axes[dim], f"is cut across its parts by {walk.where(node)}")
            continue
        parts: list[tuple[int, Axis]] = []
        for dim, sizes in zip(old_dims, _runs(factors, [old[dim] for dim in old_dims]), strict=True):
            parts += zip(sizes, _split(walk, node, dim, axes[dim], sizes), strict=True)
        for dim, sizes in zip(new_dims, _runs(factors, [new[dim] for dim in new_dims]), strict=True):
            taken, parts = parts[: len(sizes)], parts[len(sizes) :]
            result[dim] = _merge(walk, node, dim, taken)
    return tuple(result)


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of dimensions with equal products on both sides; dimensions of size 1 are left out."""
    left = [dim for dim, size in enumerate(old) if size != 1]
    right = [dim for dim, size in enumerate(new) if size != 1]
    runs = []
    while left or right:
        olds, news = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(old[dim] for dim in olds)) != (b := math.prod(new[dim] for dim in news)):
            if a < b:
                olds.append(left.pop(0))
            else:
                news.append(right.pop(0))
        runs.append((olds, news))
    return runs


def _common_factors(old: list[int], new: list[int]) -> list[int] | None:
    """Sizes into which both sides split, in order; None when there are none, as for (6, 4) and (8, 3)."""
    left, right, factors = list(old), list(new), []
    while left:
        small = min(left[0], right[0])
        if left[0] % small or right[0] % small:
            return None
        factors.append(small)
        for side in (left, right):
            side[0] //= small
            if side[0] == 1:
                side.pop(0)
    return factors


def _runs(factors: list[int], sizes: list[int]) -> list[list[int]]:
    """Which consecutive factors make up each size."""
    rest, runs = list(factors), []
    for size in sizes:
        run: list[int] = []
        while math.prod(run) != size:
            run.append(rest.pop(0))
        runs.append(run)
    return runs


def _split(walk: Walk, node: Node, dim: int, axis: Axis, sizes: list[int]) -> list[Axis]:
    """Axes of the factors of one dimension."""
    if len(sizes) == 1:
        return [axis]
    nothing: list[Axis] = [None] * len(sizes)
    if axis is None or not (axis != FIXED).any():
        return nothing
    grid = axis.reshape(sizes)
    varying = [k for k in range(len(sizes)) if (grid != np.take(grid, [0], axis=k)).any()]
    if len(varying) == 1:
        return [_along(grid, k) if k in varying else None for k in range(len(sizes))]
    key = (node.name, "split", dim)
    if walk.choices is None:
        fresh = [walk.labels.fresh(size) if k in varying else None for k, size in enumerate(sizes)]
        walk.factored.append(Factored(key, tuple(fresh), tuple(sizes)))
        return fresh
    choice = walk.choices.get(key)
    if choice is None:
        walk.labels.pin(axis, f"is split by {walk.where(node)} into parts that must all stay")
        return nothing
    chosen = _along(grid, choice)
    spread = np.broadcast_to(chosen.reshape([-1 if k == choice else 1 for k in range(len(sizes))]), grid.shape)
    walk.labels.equate(np.ascontiguousarray(spread).reshape(-1), axis, walk.where(node))
    return [chosen if k == choice else None for k in range(len(sizes))]


def _along(grid: LabelArray, k: int) -> LabelArray:
    index = tuple(slice(None) if position == k else 0 for position in range(grid.ndim))
    return np.ascontiguousarray(grid[index])


def _merge(walk: Walk, node: Node, dim: int, parts: list[tuple[int, Axis]]) -> Axis:
    """Axis of a dimension made of several factors."""
    if len(parts) == 1:
        return parts[0][1]
    labelled = [k for k, (_, axis) in enumerate(parts) if axis is not None]
    if not labelled:
        return None
    sizes = [size for size, _ in parts]
    if len(labelled) > 1:
        key = (node.name, "merge", dim)
        if walk.choices is None:
            walk.factored.append(Factored(key, tuple(axis for _, axis in parts), tuple(sizes)))
            return walk.labels.fresh(math.prod(sizes))
        choice = walk.choices.get(key)
        for k in labelled:
            if k != choice:
                walk.labels.pin(parts[k][1], f"shares a dimension with another factor in {walk.where(node)}")
        if choice is None:
            return None
        labelled = [choice]
    chosen = parts[labelled[0]][1]
    assert chosen is not None
    spread = np.broadcast_to(chosen.reshape([-1 if k == labelled[0] else 1 for k in range(len(sizes))]), sizes)
    return np.ascontiguousarray(spread).reshape(-1)


def _moved(walk: Walk, node: Node, order: Sequence[int]) -> Outcome:
    source = node.args[0]
    assert isinstance(source, Node)
    axes = walk.axes(source)
    return Outcome(outputs=(tuple(axes[dim] for dim in order),), zero=walk.zeros.get(source, False))


def permute(walk: Walk, node: Node) -> Outcome:
    """permute(x, dims)."""
    dims = node.args[1]
    assert isinstance(dims, list | tuple)
    return _moved(walk, node, [int(dim) % len(dims) for dim in dims])  # type: ignore[call-overload]


def transpose(walk: Walk, node: Node) -> Outcome:
    """transpose(x, a, b), also t, mT and numpy_T."""
    source = node.args[0]
    assert isinstance(source, Node)
    order = list(range(len(walk.shape(source))))
    if len(node.args) >= 3:
        a, b = (int(dim) % max(len(order), 1) for dim in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    elif op_name(node) == "aten.numpy_T":
        order.reverse()
    elif len(order) >= 2:
        order[-1], order[-2] = order[-2], order[-1]
    return _moved(walk, node, order)


def movedim(walk: Walk, node: Node) -> Outcome:
    """movedim(x, source, destination)."""
    source = node.args[0]
    assert isinstance(source, Node)
    ndim = len(walk.shape(source))
    moved = [int(dim) % ndim for dim in _listed(node.args[1])]
    places = [int(dim) % ndim for dim in _listed(node.args[2])]
    rest = iter(dim for dim in range(ndim) if dim not in moved)
    origin = dict(zip(places, moved, strict=True))
    return _moved(walk, node, [origin[dim] if dim in origin else next(rest) for dim in range(ndim)])


def _listed(value: object) -> list[int]:
    return [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)]  # type: ignore[call-overload]


def unsqueeze(walk: Walk, node: Node) -> Outcome:
    """unsqueeze(x, dim)."""
    source = node.args[0]
    assert isinstance(source, Node)
    axes = list(walk.axes(source))
    axes.insert(int(node.args[1]) % (len(axes) + 1), None)  # type: ignore[arg-type]
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


def squeeze(walk: Walk, node: Node) -> Outcome:
    """squeeze(x), squeeze(x, dim), squeeze(x, dims)."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape = walk.shape(source)
    dims = range(len(shape)) if len(node.args) < 2 else [dim % len(shape) for dim in _listed(node.args[1])]
    axes = tuple(axis for dim, axis in enumerate(walk.axes(source)) if not (dim in dims and shape[dim] == 1))
    return Outcome(outputs=(axes,), zero=walk.zeros.get(source, False))


def expand(walk: Walk, node: Node) -> Outcome:
    """expand, expand_as, broadcast_to: dimensions of size 1 are repeated, new ones come in front."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape, own = output_shapes(node)[0], walk.shape(source)
    new = len(shape) - len(own)
    kept = walk.axes(source)
    axes = tuple(None if dim < new or own[dim - new] == 1 else kept[dim - new] for dim in range(len(shape)))
    sizes: dict[int | str, Size | tuple[Size, ...]] = {1: sizes_of(shape, axes)} if op_name(node) != "aten.expand_as" else {}
    if op_name(node) == "aten.expand_as":
        like = node.args[1]
        assert isinstance(like, Node)
        axes = tuple(axis if axis is not None else other for axis, other in zip(axes, walk.axes(like), strict=True))
    return Outcome(outputs=(axes,), sizes=sizes, zero=walk.zeros.get(source, False))


def repeat(walk: Walk, node: Node) -> Outcome:
    """repeat(x, times): whole copies one after another."""
    source, times = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(times, list | tuple)
    axes = (None,) * (len(times) - len(walk.axes(source))) + walk.axes(source)
    repeated = tuple(repeat_whole(axis, int(count)) for axis, count in zip(axes, times, strict=True))  # type: ignore[call-overload]
    return Outcome(outputs=(repeated,), zero=walk.zeros.get(source, False))


def repeat_interleave(walk: Walk, node: Node) -> Outcome:
    """repeat_interleave(x, count, dim): every element several times in a row."""
    values = arguments(node)
    source, times, dim = values["self"], values.get("repeats"), values.get("dim")
    if not isinstance(times, int) or dim is None:
        walk.pin_all(node, f"is repeated by a data-dependent count in {walk.where(node)}")
        return Outcome(outputs=tuple((None,) * len(shape) for shape in output_shapes(node)))
    axes = list(walk.axes(source))
    axis = axes[int(dim)]
    axes[int(dim)] = None if axis is None else np.repeat(axis, times)
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


def pixel_shuffle(walk: Walk, node: Node) -> Outcome:
    """pixel_shuffle(x, r): r * r neighbouring channels make one output channel, so they leave together."""
    source, factor = node.args[:2]
    assert isinstance(source, Node)
    *leading, channels, _, _ = walk.axes(source)
    run = int(factor) ** 2  # type: ignore[arg-type]
    merged = None if channels is None else walk.labels.tie_within_runs(channels, len(channels) // run, walk.where(node))
    return Outcome(outputs=((*leading, merged, None, None),), zero=walk.zeros.get(source, False))


def pixel_unshuffle(walk: Walk, node: Node) -> Outcome:
    """pixel_unshuffle(x, r): one channel becomes r * r neighbouring ones."""
    source, factor = node.args[:2]
    assert isinstance(source, Node)
    *leading, channels, _, _ = walk.axes(source)
    spread = None if channels is None else np.repeat(channels, int(factor) ** 2)  # type: ignore[arg-type]
    return Outcome(outputs=((*leading, spread, None, None),), zero=walk.zeros.get(source, False))


def channel_shuffle(walk: Walk, node: Node) -> Outcome:
    """channel_shuffle(x, groups): position k of every group becomes neighbours; k leaves in all groups."""
    source, groups = node.args[:2]
    assert isinstance(source, Node)
    axes = list(walk.axes(source))
    channels = axes[1]
    if channels is not None:
        first = walk.labels.tie_runs(channels, int(groups), walk.where(node))  # type: ignore[arg-type]
        axes[1] = np.repeat(first, int(groups))  # type: ignore[arg-type]
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(source, False))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_alias", "aten.flatten", "aten.unflatten", "aten.view_as", "aten.reshape_as"), reshape),
    "aten.permute": permute,
    **dict.fromkeys(("aten.transpose", "aten.t", "aten.mT", "aten.numpy_T", "aten.swapaxes", "aten.swapdims", "aten.transpose_", "aten.t_"), transpose),
    "aten.movedim": movedim,
    "aten.moveaxis": movedim,
    **dict.fromkeys(("aten.unsqueeze", "aten.unsqueeze_"), unsqueeze),
    **dict.fromkeys(("aten.squeeze", "aten.squeeze_"), squeeze),
    **dict.fromkeys(("aten.expand", "aten.expand_as", "aten.broadcast_to"), expand),
    "aten.repeat": repeat,
    "aten.tile": repeat,
    "aten.repeat_interleave": repeat_interleave,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.channel_shuffle": channel_shuffle,
}  # fmt: skip
