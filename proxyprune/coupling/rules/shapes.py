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

from proxyprune.coupling.axes import FIXED, Axis, LabelArray
from proxyprune.coupling.outcome import Axes, Outcome, Size, Sizes
from proxyprune.coupling.rules.pointwise import COPIES, is_pointwise
from proxyprune.coupling.rules.walk import Factored, Rule, Walk, dims_of, kept_whole, ops, repeat_each, repeat_whole, sizes_of
from proxyprune.tracing.nodes import arguments, integers, op_name, output_shapes, overload, position_of, tensor_argument

Part = tuple[int, Axis]
"""One factor of a dimension: its size and its axis."""


def reshape(walk: Walk, node: Node) -> Outcome:
    """view, reshape, flatten, unflatten: anything that keeps the order of elements."""
    source = tensor_argument(node, 0)
    old, new = walk.shape(source), output_shapes(node)[0]
    if overload(node) == "dtype" or 0 in new:
        return kept_whole(walk, node, "is read as another type in" if new else "is empty in")
    axes = reshape_axes(walk, node, walk.axes(source), old, new)
    if op_name(node) in _SHAPED_LIKE:
        other = tensor_argument(node, 1)
        axes = tuple(walk.labels.unify([axis, like], walk.where(node)) for axis, like in zip(axes, walk.axes(other), strict=True))
    return Outcome(outputs=(axes,), sizes=_size_argument(node, sizes_of(new, axes)), zero=walk.zero(source))


_SIZED = frozenset(ops("view reshape _unsafe_view _reshape_alias"))
_SHAPED_LIKE = frozenset(ops("view_as reshape_as"))


def _size_argument(node: Node, sizes: tuple[Size, ...]) -> Sizes:
    if op_name(node) in _SIZED:
        return {1: sizes}
    if op_name(node) == "aten.unflatten":
        (dim,), count = integers(node.args[1]), len(integers(node.args[2]))
        dim %= len(sizes) - count + 1
        return {2: sizes[dim : dim + count]}
    return {}


def reshape_axes(walk: Walk, node: Node, axes: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    """Axes after a reshape from shape `old` to shape `new`."""
    result: list[Axis] = [None] * len(new)
    for old_dims, new_dims in _aligned(old, new):
        factors = _common_factors([old[dim] for dim in old_dims], [new[dim] for dim in new_dims])
        if factors is None:
            walk.pin([axes[dim] for dim in old_dims], node, "is cut across its parts in")
            continue
        parts: list[Part] = []
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
    """Return the consecutive factors that make up each size."""
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
    walk.labels.equate(_spread(chosen, choice, sizes), axis, walk.where(node))
    return [chosen if k == choice else None for k in range(len(sizes))]


def _along(grid: LabelArray, k: int) -> LabelArray:
    index = tuple(slice(None) if position == k else 0 for position in range(grid.ndim))
    return np.ascontiguousarray(grid[index])


def _spread(axis: LabelArray, k: int, sizes: Sequence[int]) -> LabelArray:
    """Labels of a dimension of factors `sizes` whose k-th factor has labels `axis`."""
    shape = [-1 if position == k else 1 for position in range(len(sizes))]
    return np.ascontiguousarray(np.broadcast_to(axis.reshape(shape), sizes)).reshape(-1)


def _merge(walk: Walk, node: Node, dim: int, parts: list[Part]) -> Axis:
    """Axis of a dimension made of several factors."""
    if len(parts) == 1:
        return parts[0][1]
    labelled = {k: axis for k, (_, axis) in enumerate(parts) if axis is not None}
    sizes = tuple(size for size, _ in parts)
    if len(labelled) > 1:
        key = (node.name, "merge", dim)
        if walk.choices is None:
            walk.factored.append(Factored(key, tuple(axis for _, axis in parts), sizes))
            return walk.labels.fresh(math.prod(sizes))
        choice = walk.choices.get(key)
        for k, axis in labelled.items():
            if k != choice:
                walk.labels.pin(axis, f"shares a dimension with another factor in {walk.where(node)}")
        labelled = {k: axis for k, axis in labelled.items() if k == choice}
    for k, axis in labelled.items():
        return _spread(axis, k, sizes)
    return None


def _moved(walk: Walk, node: Node, order: Sequence[int]) -> Outcome:
    source = tensor_argument(node, 0)
    axes = walk.axes(source)
    return Outcome(outputs=(tuple(axes[dim] for dim in order),), zero=walk.zero(source))


def permute(walk: Walk, node: Node) -> Outcome:
    """permute(x, dims)."""
    dims = integers(node.args[1])
    return _moved(walk, node, [dim % len(dims) for dim in dims])


def transpose(walk: Walk, node: Node) -> Outcome:
    """transpose(x, a, b), also t, mT and numpy_T."""
    order = list(range(len(walk.shape(tensor_argument(node, 0)))))
    if len(node.args) >= 3 and order:
        a, b = (dim % len(order) for dim in integers(node.args[1:3]))
        order[a], order[b] = order[b], order[a]
    elif op_name(node) == "aten.numpy_T":
        order.reverse()
    elif len(order) >= 2:
        order[-1], order[-2] = order[-2], order[-1]
    return _moved(walk, node, order)


def movedim(walk: Walk, node: Node) -> Outcome:
    """movedim(x, source, destination)."""
    ndim = len(walk.shape(tensor_argument(node, 0)))
    moved, places = ([dim % ndim for dim in integers(node.args[position])] for position in (1, 2))
    rest = iter(dim for dim in range(ndim) if dim not in moved)
    origin = dict(zip(places, moved, strict=True))
    return _moved(walk, node, [origin[dim] if dim in origin else next(rest) for dim in range(ndim)])


def unsqueeze(walk: Walk, node: Node) -> Outcome:
    """unsqueeze(x, dim)."""
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    (dim,) = integers(node.args[1])
    axes.insert(dim % (len(axes) + 1), None)
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


def squeeze(walk: Walk, node: Node) -> Outcome:
    """squeeze(x), squeeze(x, dim), squeeze(x, dims)."""
    source = tensor_argument(node, 0)
    shape = walk.shape(source)
    dims = dims_of(node.args[1] if len(node.args) > 1 else None, len(shape))
    axes = tuple(axis for dim, axis in enumerate(walk.axes(source)) if not (dim in dims and shape[dim] == 1))
    return Outcome(outputs=(axes,), zero=walk.zero(source))


def expand(walk: Walk, node: Node) -> Outcome:
    """expand, broadcast_to, expand_as: dimensions of size 1 are repeated, new ones come in front."""
    source = tensor_argument(node, 0)
    shape, own = output_shapes(node)[0], walk.shape(source)
    new = len(shape) - len(own)
    stretched = [dim for dim in range(len(shape)) if dim < new or own[dim - new] != shape[dim]]
    kept = (None,) * new + walk.axes(source)
    if op_name(node) == "aten.expand_as":
        others = walk.axes(tensor_argument(node, 1))
        axes = tuple(
            other if dim in stretched else walk.labels.unify([axis, other], walk.where(node))
            for dim, (axis, other) in enumerate(zip(kept, others, strict=True))
        )
        return Outcome(outputs=(axes,), zero=walk.zero(source) and not walk.open([axes[dim] for dim in stretched]))
    axes = tuple(_elastic(walk, node, dim) if dim in stretched else axis for dim, axis in enumerate(kept))
    zero = walk.zero(source) and not walk.open([axes[dim] for dim in stretched])
    return Outcome(outputs=(axes,), sizes={1: sizes_of(shape, axes)}, zero=zero)


def _elastic(walk: Walk, node: Node, dim: int) -> Axis:
    """Give a dimension of equal entries, which takes any size, the labels of what it meets.

    Where it would be split or merged instead, as the copies of a key head in grouped attention are, their number is part of the
    architecture.
    """
    return walk.labels.fresh(output_shapes(node)[0][dim]) if all(_meets(node, user, dim) for user in node.users) else None


def _meets(source: Node, user: Node, dim: int) -> bool:
    """Return True if a dimension meets that of another tensor in an op, or in those that follow and leave it as it is."""
    name = op_name(user)
    if name in _MEETINGS or (is_pointwise(user) and name not in COPIES):
        return True
    after = _place_after(source, user, dim)
    return after is not None and bool(user.users) and all(_meets(user, following, after) for following in user.users)


def _place_after(source: Node, user: Node, dim: int) -> int | None:
    """Return the place of a dimension after an op that leaves it as it is; None if the op may change it."""
    name, ndim = op_name(user), len(output_shapes(source)[0])
    if name in COPIES:
        return dim
    if name == "aten.pad":
        widths = integers(user.args[1])[2 * (ndim - 1 - dim) :][:2]
        return None if any(widths) else dim
    if name == "aten.permute":
        return [place % ndim for place in integers(user.args[1])].index(dim)
    if name in _VIEWS:
        before, after = output_shapes(source)[0], output_shapes(user)[0]
        entries = math.prod(before[:dim])
        return next((k for k, size in enumerate(after) if size == before[dim] and math.prod(after[:k]) == entries), None)
    return None


_MEETINGS = frozenset(ops("gather take_along_dim scaled_dot_product_attention cat conv1d conv2d conv3d einsum"))
_VIEWS = frozenset(ops("view reshape"))


def repeat(walk: Walk, node: Node) -> Outcome:
    """repeat(x, times), tile: whole copies one after another; a dimension of size 1 is stretched, as by expand."""
    source, times = tensor_argument(node, 0), integers(node.args[1])
    axes, own = walk.axes(source), walk.shape(source)
    ndim = max(len(axes), len(times))
    axes, own, counts = (None,) * (ndim - len(axes)) + axes, (1,) * (ndim - len(own)) + own, (1,) * (ndim - len(times)) + times
    stretched = [dim for dim in range(ndim) if own[dim] == 1 and counts[dim] > 1]
    repeated = tuple(_elastic(walk, node, dim) if dim in stretched else repeat_whole(axis, counts[dim]) for dim, axis in enumerate(axes))
    new_counts = tuple(size if dim in stretched else counts[dim] for dim, size in enumerate(sizes_of(counts, repeated)))
    zero = walk.zero(source) and not walk.open([repeated[dim] for dim in stretched])
    return Outcome(outputs=(repeated,), sizes={1: new_counts[ndim - len(times) :]}, zero=zero)


def repeat_interleave(walk: Walk, node: Node) -> Outcome:
    """repeat_interleave(x, count, dim): every element several times in a row; a dimension of size 1 is stretched, as by expand."""
    values = arguments(node)
    times, dim = values.get("repeats"), values.get("dim")
    if not isinstance(times, int) or dim is None:
        return kept_whole(walk, node, "is repeated by a data-dependent count in")
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    dim = int(dim) % len(axes)
    if walk.shape(source)[dim] > 1:
        axes[dim] = repeat_each(axes[dim], times)
        return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))
    axes[dim] = copies = _elastic(walk, node, dim)
    sizes: Sizes = {} if copies is None else {position_of(node, "repeats"): copies}
    return Outcome(outputs=(tuple(axes),), sizes=sizes, zero=walk.zero(source) and not walk.open([copies]))


def pixel_shuffle(walk: Walk, node: Node) -> Outcome:
    """pixel_shuffle(x, r): r * r neighbouring channels make one output channel, so they leave together."""
    source, (factor,) = tensor_argument(node, 0), integers(node.args[1])
    *leading, channels, height, width = walk.axes(source)
    walk.pin((height, width), node, "is a spatial dimension in")
    merged = None if channels is None else walk.labels.tie_within_runs(channels, len(channels) // factor**2, walk.where(node))
    return Outcome(outputs=((*leading, _of_several(merged), None, None),), zero=walk.zero(source))


def _of_several(axis: Axis) -> Axis:
    """None for an axis of one position, which nothing can cut."""
    return axis if axis is not None and len(axis) > 1 else None


def pixel_unshuffle(walk: Walk, node: Node) -> Outcome:
    """pixel_unshuffle(x, r): one channel becomes r * r neighbouring ones."""
    source, (factor,) = tensor_argument(node, 0), integers(node.args[1])
    *leading, channels, height, width = walk.axes(source)
    walk.pin((height, width), node, "is a spatial dimension in")
    return Outcome(outputs=((*leading, repeat_each(channels, factor**2), None, None),), zero=walk.zero(source))


def channel_shuffle(walk: Walk, node: Node) -> Outcome:
    """channel_shuffle(x, groups): position k of every group becomes neighbours; k leaves in all groups."""
    source, (groups,) = tensor_argument(node, 0), integers(node.args[1])
    axes = list(walk.axes(source))
    if axes[1] is not None:
        axes[1] = repeat_each(walk.labels.tie_runs(axes[1], groups, walk.where(node)), groups)
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


def unfold_image(walk: Walk, node: Node) -> Outcome:
    """im2col: [n, c, h, w] -> [n, c * taps, positions]; all taps of a channel leave together."""
    source = tensor_argument(node, 0)
    *leading, channels, height, width = walk.axes(source)
    walk.pin((height, width), node, "is a spatial dimension in")
    taps = math.prod(integers(arguments(node)["kernel_size"]))
    return Outcome(outputs=((*leading, repeat_each(channels, taps), None),), zero=walk.zero(source))


def fold_image(walk: Walk, node: Node) -> Outcome:
    """col2im: [n, c * taps, positions] -> [n, c, h, w]; all taps of a channel leave together."""
    source = tensor_argument(node, 0)
    *leading, channels, positions = walk.axes(source)
    walk.pin([positions], node, "is a spatial dimension in")
    taps = math.prod(integers(arguments(node)["kernel_size"]))
    merged = None if channels is None else walk.labels.tie_within_runs(channels, len(channels) // taps, walk.where(node))
    return Outcome(outputs=((*leading, _of_several(merged), None, None),), zero=walk.zero(source))


def sliding_windows(walk: Walk, node: Node) -> Outcome:
    """x.unfold(dim, size, step): windows along a dimension, which stays whole; their positions come last."""
    source = tensor_argument(node, 0)
    axes = list(walk.axes(source))
    for dim in dims_of(arguments(node)["dimension"], len(axes)):
        walk.pin([axes[dim]], node, "is cut into windows in")
        axes[dim] = None
    return Outcome(outputs=((*axes, None),), zero=walk.zero(source))


def diagonal(walk: Walk, node: Node) -> Outcome:
    """diagonal(x, offset, dim1, dim2), diag: two dimensions are read at equal positions, so both stay."""
    source = tensor_argument(node, 0)
    values, axes = arguments(node), walk.axes(source)
    pair = {int(values[name]) % len(axes) for name in ("dim1", "dim2") if name in values} or set(range(len(axes)))
    walk.pin([axes[dim] for dim in pair], node, "is read along a diagonal in")
    kept = tuple(axis for dim, axis in enumerate(axes) if dim not in pair)
    return Outcome(outputs=((*kept, *(None,) * (len(output_shapes(node)[0]) - len(kept))),), zero=walk.zero(source))


def real_pairs(walk: Walk, node: Node) -> Outcome:
    """view_as_real: a new last dimension holds real and imaginary parts."""
    source = tensor_argument(node, 0)
    return Outcome(outputs=((*walk.axes(source), None),), zero=walk.zero(source))


def complex_numbers(walk: Walk, node: Node) -> Outcome:
    """view_as_complex: the last dimension holds real and imaginary parts, and stays."""
    source = tensor_argument(node, 0)
    *axes, pair = walk.axes(source)
    walk.pin([pair], node, "holds real and imaginary parts in")
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(source))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("view reshape _unsafe_view _reshape_alias flatten unflatten view_as reshape_as ravel"), reshape),
    "aten.permute": permute,
    **dict.fromkeys(ops("transpose t mT mH adjoint numpy_T swapaxes swapdims transpose_ t_ swapaxes_ swapdims_"), transpose),
    **dict.fromkeys(ops("movedim moveaxis"), movedim),
    **dict.fromkeys(ops("unsqueeze unsqueeze_"), unsqueeze),
    **dict.fromkeys(ops("squeeze squeeze_"), squeeze),
    **dict.fromkeys(ops("expand expand_as broadcast_to"), expand),
    **dict.fromkeys(ops("repeat tile"), repeat),
    "aten.repeat_interleave": repeat_interleave,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(ops("channel_shuffle native_channel_shuffle"), channel_shuffle),
    "aten.im2col": unfold_image,
    "aten.col2im": fold_image,
    "aten.unfold": sliding_windows,
    **dict.fromkeys(ops("diagonal linalg_diagonal diag"), diagonal),
    "aten.view_as_real": real_pairs,
    "aten.view_as_complex": complex_numbers,
}
