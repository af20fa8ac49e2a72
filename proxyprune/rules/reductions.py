"""Reductions, softmax, pooling and resampling: some dimensions are summed, averaged or resized, the rest go on."""

from __future__ import annotations

from torch.fx import Node

from proxyprune.axes import Axis
from proxyprune.rules.base import Axes, Outcome, Rule, Walk, arguments, dims_of, op_name, output_shapes

_SQUARE_ROOTS = frozenset({"aten.rsqrt", "aten.sqrt", "aten.pow", "aten.rsqrt_", "aten.sqrt_", "aten.reciprocal"})
_SCALING = frozenset({"aten.add", "aten.clamp", "aten.clamp_min", "aten.mul", "aten.div", "aten.to", "aten._to_copy", "aten.unsqueeze", "aten.add_", "aten.maximum"})  # fmt: skip
_EXACT_ON_ZERO = frozenset({"aten.sum", "aten.linalg_vector_norm", "aten.norm"})


def reduction(walk: Walk, node: Node) -> Outcome:
    """sum, mean, var, amax ... over some dimensions.

    A sum or a Euclidean norm over channels is exact when the dropped ones are zero. A mean or variance over channels changes with their
    number; it is let through where it serves as the statistic of a hand-written norm (it ends in a square root, or is subtracted from
    its own input), and pinned elsewhere.
    """
    values = arguments(node)
    source = values["self"]
    shape, axes = walk.shape(source), walk.axes(source)
    dims = dims_of(values.get("dim"), len(shape))
    name = op_name(node)
    for dim in dims:
        if axes[dim] is None:
            continue
        exact = name in _EXACT_ON_ZERO and walk.zeros.get(source, False)
        if not exact and not is_norm_statistic(node):
            walk.labels.pin(axes[dim], f"is reduced in {walk.where(node)}, where dropped channels would count")
    keep = bool(values.get("keepdim", False))
    result: Axes = tuple(None if dim in dims else axis for dim, axis in enumerate(axes) if keep or dim not in dims)
    return Outcome(outputs=(result,) * len(output_shapes(node)), zero=walk.zeros.get(source, False))


def is_norm_statistic(node: Node) -> bool:
    """True when a mean, variance or norm is used to normalise its own input."""
    source = node.args[0]
    name = op_name(node)
    if name in ("aten.var_mean", "aten.std_mean"):
        return True
    if name not in ("aten.mean", "aten.var", "aten.std", "aten.linalg_vector_norm", "aten.norm", "aten.sum"):
        return False
    if name in ("aten.linalg_vector_norm", "aten.norm", "aten.std"):
        return any(op_name(user) in ("aten.div", "aten.clamp_min", "aten.add", "aten.clamp", "aten.expand_as") for user in node.users)
    if name == "aten.mean" and any(op_name(user) == "aten.sub" and user.args[0] is source and user.args[1] is node for user in node.users):
        return True
    frontier, seen = list(node.users), 0
    while frontier and seen < 12:
        user = frontier.pop(0)
        seen += 1
        if op_name(user) in _SQUARE_ROOTS:
            return name != "aten.sum"
        if op_name(user) in _SCALING:
            frontier.extend(user.users)
    return False


def softmax(walk: Walk, node: Node) -> Outcome:
    """softmax, log_softmax: the dimension it runs over is pinned."""
    return _along(walk, node, "is shared out by softmax in")


def ordered(walk: Walk, node: Node) -> Outcome:
    """cumsum, sort, topk, argmax and others that depend on all entries of a dimension."""
    return _along(walk, node, "is read in order in")


def _along(walk: Walk, node: Node, why: str) -> Outcome:
    values = arguments(node)
    source = values["self"]
    axes: list[Axis] = list(walk.axes(source))
    dims = dims_of(values.get("dim", -1), len(axes))
    for dim in dims:
        walk.labels.pin(axes[dim], f"{why} {walk.where(node)}")
        axes[dim] = None
    shapes = output_shapes(node)
    outputs = tuple(
        tuple(axes) if len(shape) == len(axes) else tuple(axis for dim, axis in enumerate(axes) if dim not in dims) for shape in shapes
    )
    return Outcome(outputs=outputs)


def resampling(walk: Walk, node: Node) -> Outcome:
    """Pooling and interpolation: leading and channel dimensions go on, the rest are spatial."""
    values = arguments(node)
    source = values["self"] if "self" in values else values["input"]
    axes, shapes = walk.axes(source), output_shapes(node)
    spatial = _spatial(node, len(axes))
    for axis in axes[len(axes) - spatial :]:
        walk.labels.pin(axis, f"is a spatial dimension in {walk.where(node)}")
    result = (*axes[: len(axes) - spatial], *(None,) * spatial)
    return Outcome(outputs=(result,) * len(shapes), zero=walk.zeros.get(source, False))


def _spatial(node: Node, ndim: int) -> int:
    name = op_name(node)
    for digit in "123":
        if f"{digit}d" in name:
            return int(digit)
    return ndim - 2


_REDUCTIONS = (
    "sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "prod", "logsumexp", "linalg_vector_norm", "norm", "any", "all", "nansum",
)  # fmt: skip
_ORDERED = ("cumsum", "cumprod", "sort", "topk", "argmax", "argmin", "max", "min", "argsort", "median", "diff")
_RESAMPLING = tuple(
    f"{kind}{digit}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool") for digit in (1, 2, 3)
) + tuple(f"max_pool{digit}d_with_indices" for digit in (1, 2, 3)) + (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "upsample_linear1d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "_adaptive_avg_pool2d",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys((f"aten.{name}" for name in _REDUCTIONS), reduction),
    **dict.fromkeys(("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten._safe_softmax"), softmax),
    **dict.fromkeys((f"aten.{name}" for name in _ORDERED), ordered),
    **dict.fromkeys((f"aten.{name}" for name in _RESAMPLING), resampling),
}
