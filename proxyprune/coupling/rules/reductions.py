"""Reductions, softmax, transforms, pooling and resampling: some dimensions are summed, averaged or resized, the rest go on."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.coupling.groups import STANDARDISED
from proxyprune.coupling.outcome import Axes, Outcome
from proxyprune.coupling.rules.norm_statistics import is_norm_statistic
from proxyprune.coupling.rules.walk import Rule, Walk, broadcast, dims_of, fixed, in_place, kept_whole, ops, spans
from proxyprune.tracing.nodes import arguments, integers, op_name, output_shapes, tensor_argument

_NORMS = frozenset(ops("linalg_vector_norm norm linalg_norm"))
_EXACT_ON_ZERO = frozenset(ops("sum nansum count_nonzero any")) | _NORMS
_STANDARDISING = frozenset(ops("mean var std var_mean std_mean"))
_NOT_ZERO_AT_ZERO = frozenset(ops("logsumexp all"))


def reduction(walk: Walk, node: Node) -> Outcome:
    """sum, mean, var, amax ... over some dimensions.

    A sum or a Euclidean norm over channels is exact when the dropped ones are zero. A mean or variance over channels changes with their
    number; it is let through where it serves as the statistic of a hand-written norm, and pinned elsewhere.
    """
    values = arguments(node)
    source = tensor_argument(node, 0)
    axes = walk.axes(source)
    dims = dims_of(values.get("dim"), len(axes))
    if walk.is_weight(source) and op_name(node) in _STANDARDISING:
        walk.pin([axes[dim] for dim in dims], node, STANDARDISED)
    elif is_norm_statistic(walk, node):
        walk.held.add(node)
    elif node.users and not _exact(walk, node, values):  # attention weights are often averaged for nobody
        walk.pin([axes[dim] for dim in dims], node, "is reduced, with dropped channels counted, in")
    keep = bool(values.get("keepdim", False))
    result: Axes = tuple(None if dim in dims else axis for dim, axis in enumerate(axes) if keep or dim not in dims)
    zero = walk.zero(source) and op_name(node) not in _NOT_ZERO_AT_ZERO
    return Outcome(outputs=(result,) * len(output_shapes(node)), zero=zero)


def _exact(walk: Walk, node: Node, values: dict[str, Any]) -> bool:
    """Zeros do not count in sums, and not in p-norms for p >= 0."""
    name = op_name(node)
    if name not in _EXACT_ON_ZERO or not walk.zero(tensor_argument(node, 0)):
        return False
    order = values.get("ord", values.get("p")) if name in _NORMS else None
    if order is None:  # Euclidean
        return True
    dim = values.get("dim")
    matrix_norm = name == "aten.linalg_norm" and (dim is None or len(integers(dim)) > 1)
    return isinstance(order, int | float) and order >= 0 and not matrix_norm


def similarity(walk: Walk, node: Node) -> Outcome:
    """cosine_similarity(a, b, dim): sums over one dimension, exact when both are zero where channels left."""
    tensors = node.all_input_nodes
    shape = np.broadcast_shapes(*(walk.shape(tensor) for tensor in tensors))
    axes = list(broadcast(walk, node, tensors, shape))
    dim = int(arguments(node)["dim"]) % len(shape)
    reduced = axes.pop(dim)
    if not all(walk.zero(tensor) and spans(walk, tensor, shape, len(shape) - dim) for tensor in tensors):
        walk.pin([reduced], node, "is reduced, with dropped channels counted, in")
    return Outcome(outputs=(tuple(axes),))


def softmax(walk: Walk, node: Node) -> Outcome:
    """softmax, log_softmax: the dimension it runs over is pinned."""
    return _along(walk, node, "is shared out in")


def ordered(walk: Walk, node: Node) -> Outcome:
    """cumsum, sort, topk, argmax and others that depend on all entries of a dimension, or on their order."""
    return _along(walk, node, "is read in order in")


def transform(walk: Walk, node: Node) -> Outcome:
    """fft and its kin: the transformed dimensions are pinned, zeros stay zeros."""
    return _along(walk, node, "is transformed in", linear=True)


def _along(walk: Walk, node: Node, why: str, *, linear: bool = False) -> Outcome:
    """Dimensions in `dim` are pinned and may change their size or vanish; the other ones go on."""
    values = arguments(node)
    if len(node.all_input_nodes) > 1:  # torch.diff with something to prepend
        return kept_whole(walk, node, why)
    source = tensor_argument(node, 0)
    axes: list[Axis] = list(walk.axes(source))
    dims = dims_of(values.get("dim"), len(axes))
    walk.pin([axes[dim] for dim in dims], node, why)
    same = tuple(None if dim in dims else axis for dim, axis in enumerate(axes))
    gone = tuple(axis for dim, axis in enumerate(axes) if dim not in dims)
    outputs = tuple(same if len(shape) == len(axes) else gone for shape in output_shapes(node))
    return Outcome(outputs=outputs, zero=linear and walk.zero(source))


def resampling(walk: Walk, node: Node) -> Outcome:
    """Pooling, padding and interpolation: leading and channel dimensions go on, the rest are spatial."""
    source = tensor_argument(node, 0)
    axes = walk.axes(source)
    leading = len(axes) - _spatial(node, len(axes))
    walk.pin(axes[leading:], node, "is a spatial dimension in")
    outputs = tuple((*axes[:leading], *fixed(shape[leading:])) for shape in output_shapes(node))
    return Outcome(outputs=outputs, zero=walk.zero(source))


def _spatial(node: Node, ndim: int) -> int:
    name = op_name(node)
    for digit in "123":
        if f"{digit}d" in name:
            return int(digit)
    return ndim - 2


def unpooling(walk: Walk, node: Node) -> Outcome:
    """max_unpool(x, indices, size): channels of both meet, the rest are spatial."""
    source, ids = tensor_argument(node, 0), tensor_argument(node, 1)
    spatial = 3 if "3d" in op_name(node) else 2
    for tensor in (source, ids):
        walk.pin(walk.axes(tensor)[-spatial:], node, "is a spatial dimension in")
    pairs = zip(walk.axes(source)[:-spatial], walk.axes(ids)[:-spatial], strict=True)
    leading = tuple(walk.labels.unify(list(pair), walk.where(node)) for pair in pairs)
    return Outcome(outputs=((*leading, *(None,) * spatial),), zero=walk.zero(source))


def sampling(walk: Walk, node: Node) -> Outcome:
    """grid_sampler(x, grid): x [n, c, ...] is read at positions grid [n, ..., 2 or 3]; channels go on."""
    source, grid = tensor_argument(node, 0), tensor_argument(node, 1)
    axes, where = walk.axes(source), walk.where(node)
    walk.pin((*axes[2:], *walk.axes(grid)[1:]), node, "is a spatial dimension in")
    batch = walk.labels.unify([axes[0], walk.axes(grid)[0]], where)
    return Outcome(outputs=((batch, axes[1], *(None,) * (len(axes) - 2)),), zero=walk.zero(source))


def counted(walk: Walk, node: Node) -> Outcome:
    """histc, bincount: how many values lie in each bin, which every entry changes."""
    return kept_whole(walk, node, "is counted in")


_DIMS = "123"
_POOLS = " ".join(f"{kind}_pool{digit}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "_adaptive_avg") for digit in _DIMS)
_PADDINGS = " ".join(f"{kind}_pad{digit}d" for kind in ("reflection", "replication") for digit in _DIMS)
_UPSAMPLINGS = " ".join(f"{kind}{digit}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for digit in _DIMS)

RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("sum mean var std var_mean std_mean amax amin prod logsumexp any all nansum count_nonzero"), reduction),
    **dict.fromkeys(_NORMS, reduction),
    "aten.cosine_similarity": similarity,
    **dict.fromkeys(in_place(ops("softmax log_softmax _softmax _log_softmax _safe_softmax special_softmax special_log_softmax")), softmax),
    **dict.fromkeys(
        ops("cumsum cumsum_ cumprod cummax cummin logcumsumexp sort msort topk argmax argmin aminmax max min argsort kthvalue")
        + ops("median nanmedian mode diff nanmean nanquantile quantile"),
        ordered,
    ),
    **dict.fromkeys(ops("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"), transform),
    **dict.fromkeys(ops("fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift"), transform),
    **dict.fromkeys(ops(_POOLS), resampling),
    **dict.fromkeys(ops(" ".join(f"max_pool{digit}d_with_indices" for digit in _DIMS)), resampling),
    **dict.fromkeys(ops(f"{_UPSAMPLINGS} {_PADDINGS} lp_pool1d"), resampling),
    **dict.fromkeys(ops("upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"), resampling),
    **dict.fromkeys(ops("_upsample_bilinear2d_aa _upsample_bicubic2d_aa"), resampling),
    **dict.fromkeys(ops("max_unpool2d max_unpool3d"), unpooling),
    **dict.fromkeys(ops("histc bincount"), counted),
    **dict.fromkeys(ops("grid_sampler grid_sampler_2d grid_sampler_3d"), sampling),
}
