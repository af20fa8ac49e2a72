"""Ops that multiply: linear, convolutions, matrix products, attention. These are the ops that cost MACs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from proxyprune.coupling.axes import Axis, Divisible
from proxyprune.coupling.groups import NORMALISED
from proxyprune.coupling.outcome import Axes, Outcome, Size, Sizes, Term
from proxyprune.coupling.rules.walk import Rule, Walk, kept_whole, ops, product_is_zero, repeat_each, repeat_whole, spans, sum_is_zero
from proxyprune.tracing.nodes import arguments, op_name, output_shapes, position_of, tensor_argument

SCALED = "is summed over between two signals, which are usually scaled by its size, in"
NOT_ZERO = "is summed over, where dropped values are not zero, in"


def linear(walk: Walk, node: Node) -> Outcome:
    """linear(x, w, b): x [..., in], w [out, in] or [in], b [out]."""
    data, weight, bias = tensor_argument(node, "input"), tensor_argument(node, "weight"), _optional(node, "bias")
    contract(walk, node, (data, -1), (weight, -1))
    out: Axes = walk.axes(weight)[:-1]
    if bias is not None and out:
        out = (walk.labels.unify([*out, *walk.axes(bias)], walk.where(node)),)
    leading, shape = walk.axes(data)[:-1], output_shapes(node)[0]
    inner = (walk.shape(data)[-1], walk.axes(data)[-1])
    macs = (Term.of(*zip(shape, (*leading, *out), strict=True), inner),) if out else ()
    zero = _affine_is_zero(walk, leading, data, weight, bias)
    return Outcome(outputs=((*leading, *out),), macs=macs, zero=zero, costed=bool(out))


def _optional(node: Node, name: str) -> Node | None:
    value = arguments(node).get(name)
    return value if isinstance(value, Node) else None


def _affine_is_zero(walk: Walk, leading: Axes, data: Node, weight: Node, bias: Node | None) -> bool:
    """W x + b is zero where W and b are; where x is too, but for the bias."""
    if not (walk.zero(weight) and walk.zero(bias)):
        return False
    return (walk.zero(data) and bias is None) or not walk.open(leading)


def addmm(walk: Walk, node: Node) -> Outcome:
    """addmm(b, x, w), baddbmm, addmv: b + x @ w, with w [in, out]."""
    bias, left, right = (tensor_argument(node, position) for position in range(3))
    product = _product(walk, node, left, right)
    (axes,), shape = product.outputs, output_shapes(node)[0]
    where, own = walk.where(node), walk.axes(bias)
    merged = tuple(
        walk.labels.unify([axis, own[-offset]], where) if spans(walk, bias, shape, offset) else axis
        for offset, axis in zip(range(len(shape), 0, -1), axes, strict=True)
    )
    zero = product.zero and sum_is_zero(walk, merged, shape, [bias])
    return Outcome(outputs=(merged,), macs=product.macs, zero=zero, costed=product.costed)


def matmul(walk: Walk, node: Node) -> Outcome:
    """matmul, mm, bmm, mv, dot: the last dimension of the first meets the second-to-last of the second.

    A product with a vector on the right is named as uncosted: the reference counter, like the literature, has no formula for it. Of a
    weight and a buffer, it estimates the norm of the weight (spectral normalisation), which is part of no sample's cost. The weight is
    divided by this norm and has no gain that could make up for a cut.
    """
    left, right = tensor_argument(node, 0), tensor_argument(node, 1)
    outcome = _product(walk, node, left, right)
    if not outcome.costed and any(walk.is_weight(a) and walk.is_constant(b) for a, b in ((left, right), (right, left))):
        walk.pin([walk.axes(left)[-1], walk.axes(right)[-1]], node, NORMALISED)
        return replace(outcome, costed=True)
    return outcome


def _product(walk: Walk, node: Node, left: Node, right: Node) -> Outcome:
    left_axes, right_axes = walk.axes(left), walk.axes(right)
    contract(walk, node, (left, -1), (right, max(-2, -len(right_axes))))
    shape = output_shapes(node)[0]
    rows = left_axes[-2:-1]
    columns = right_axes[-1:] if len(right_axes) > 1 else ()
    batch = _batch_axes(walk, node, left, right, shape[: len(shape) - len(rows) - len(columns)])
    axes: Axes = (*batch, *rows, *columns)
    inner = (walk.shape(left)[-1], left_axes[-1])
    macs = (Term.of(*zip(shape, axes, strict=True), inner),) if columns else ()
    zero = _product_is_zero(walk, (left, right), shape, (batch, rows, columns))
    return Outcome(outputs=(axes,), macs=macs, zero=zero, costed=bool(columns))


def _product_is_zero(walk: Walk, operands: tuple[Node, Node], shape: tuple[int, ...], axes: tuple[Axes, Axes, Axes]) -> bool:
    """Zero where a row (from the left), a column (from the right) or a batch entry (from either that has it) was dropped."""
    batch, rows, columns = axes
    zeros = [operand for operand in operands if walk.zero(operand)]
    if not zeros or (not walk.zero(operands[0]) and walk.open(rows)) or (not walk.zero(operands[1]) and walk.open(columns)):
        return False
    matrix = shape[: len(batch)]
    return not walk.any_open(batch, lambda offset: any(_has_batch(walk, operand, matrix, offset) for operand in zeros))


def _has_batch(walk: Walk, operand: Node, batch: tuple[int, ...], offset: int) -> bool:
    """Return True if a factor of a batched product has its own entries along a batch dimension, counted from the right."""
    own = walk.shape(operand)[:-2]
    return offset <= len(own) and (own[-offset] != 1 or batch[-offset] == 1)


def _batch_axes(walk: Walk, node: Node, left: Node, right: Node, shape: tuple[int, ...]) -> Axes:
    result: list[Axis] = []
    for offset in range(len(shape), 0, -1):
        meeting = [walk.axes(operand)[-2 - offset] for operand in (left, right) if _has_batch(walk, operand, shape, offset)]
        axis = walk.labels.unify(meeting, walk.where(node)) if meeting else None
        if axis is not None:
            walk.labels.heads.append(axis)
        result.append(axis)
    return tuple(result)


def contract(walk: Walk, node: Node, first: tuple[Node, int], second: tuple[Node, int]) -> None:
    """Sum over a shared dimension: cutting it is exact when at least one factor is zero in the dropped positions."""
    axes = [walk.axes(operand)[dim] for operand, dim in (first, second)]
    walk.labels.equate(axes[0], axes[1], walk.where(node))
    if not any(walk.zero(operand) for operand, _ in (first, second)):
        walk.pin(axes, node, NOT_ZERO)
    if not any(walk.is_weight(operand) for operand, _ in (first, second)):
        walk.pin(axes, node, SCALED)


def attention(walk: Walk, node: Node) -> Outcome:
    """scaled_dot_product_attention(q, k, v): [..., heads, length, head_dim].

    Whole heads can leave. The head dimension is pinned, because the default scale is made from it. With fewer key heads
    than query heads, all queries of a key head leave with it, so the ratio stays.
    """
    query, key, value = (tensor_argument(node, name) for name in ("query", "key", "value"))
    shape = output_shapes(node)[0]
    for tensor in (query, key, value):
        walk.pin(walk.axes(tensor)[-2:], node, "is a head dimension or a sequence in")
    batch = tuple(_attended_batch(walk, node, (query, key, value), offset) for offset in range(len(shape), 2, -1))
    axes: Axes = (*batch, walk.axes(query)[-2], walk.axes(value)[-1])
    mask = _optional(node, "attn_mask")
    if mask is not None:
        _meet_mask(walk, node, mask, axes, shape)
    positions = math.prod((*walk.shape(query)[-2:-1], *walk.shape(key)[-2:-1]))
    leading = tuple(zip(shape[:-2], batch, strict=True))
    macs = tuple(Term.of((positions * width, None), *leading) for width in (walk.shape(query)[-1], walk.shape(value)[-1]))
    return Outcome(outputs=(axes,), macs=macs, zero=product_is_zero(walk, axes, shape, [value]))


def _attended_batch(walk: Walk, node: Node, operands: Sequence[Node], offset: int) -> Axis:
    """Return a batch or head dimension, counted from the right: equal sizes meet, a fewer key heads stand for runs of query heads."""
    where, size = walk.where(node), output_shapes(node)[0][-offset]
    own = [(walk.shape(operand)[-offset], walk.axes(operand)[-offset]) for operand in operands if offset <= len(walk.shape(operand))]
    axis = walk.labels.unify([axis for extent, axis in own if extent == size], where)
    for extent, fewer in own:
        if 1 < extent < size:
            walk.labels.equate(axis, repeat_each(fewer, size // extent), where)
    if axis is not None:
        walk.labels.heads.append(axis)
    return axis


def _meet_mask(walk: Walk, node: Node, mask: Node, axes: Axes, shape: tuple[int, ...]) -> None:
    own = walk.axes(mask)
    walk.pin(own[-2:], node, "is a sequence in")
    for offset in range(3, min(len(own), len(axes)) + 1):
        if spans(walk, mask, shape, offset):
            walk.labels.equate(own[-offset], axes[-offset], walk.where(node))


@dataclass(frozen=True)
class Convolution:
    """One convolution.

    Attributes:
        data: [n, in, ...], or [in, ...].
        weight: [out, in / groups, ...]; [in, out / groups, ...] when transposed.
        bias: [out], or None.
        groups: Number of convolution groups.
        transposed: True for a transposed convolution.
    """

    data: Node
    weight: Node
    bias: Node | None
    groups: int
    transposed: bool


def convolution(walk: Walk, node: Node) -> Outcome:
    """conv1d, conv_transpose1d ... 3d, and aten.convolution, which carries a `transposed` flag."""
    values = arguments(node)
    conv = Convolution(
        tensor_argument(node, "input"),
        tensor_argument(node, "weight"),
        _optional(node, "bias"),
        int(values["groups"]),
        bool(values.get("transposed", "transpose" in op_name(node))),
    )
    weight_shape, shape = walk.shape(conv.weight), output_shapes(node)[0]
    channel_dim = len(shape) - len(weight_shape) + 1  # 0 for an input without a batch dimension
    leading, in_axis, spatial = _around(walk.axes(conv.data), channel_dim)
    walk.pin(spatial, node, "is a spatial dimension in")
    for axis in walk.axes(conv.weight)[2:]:
        walk.labels.pin(axis, "is a kernel or spatial dimension")
    if conv.groups > 1:
        out_axis, groups = _grouped(walk, node, conv, in_axis)
    else:
        contract(walk, node, (conv.data, channel_dim), (conv.weight, int(not conv.transposed)))
        out_axis, groups = walk.axes(conv.weight)[int(conv.transposed)], 1
    if conv.bias is not None:
        out_axis = walk.labels.unify([out_axis, walk.axes(conv.bias)[0]], walk.where(node))
    sizes: Sizes = {} if isinstance(groups, int) else {position_of(node, "groups"): groups}
    return Outcome(
        outputs=((*leading, out_axis, *(None for _ in spatial)),),
        sizes=sizes,
        macs=(_convolution_macs(walk, conv, shape, channel_dim),),
        zero=_affine_is_zero(walk, leading, conv.data, conv.weight, conv.bias),
    )


def _around(axes: Axes, dim: int) -> tuple[Axes, Axis, Axes]:
    return axes[:dim], axes[dim], axes[dim + 1 :]


def _convolution_macs(walk: Walk, conv: Convolution, shape: tuple[int, ...], channel_dim: int) -> Term:
    """Every kernel entry is used once for each position of the output (of the input, when transposed)."""
    data_shape, weight_shape, weight_axes = walk.shape(conv.data), walk.shape(conv.weight), walk.axes(conv.weight)
    positions = (data_shape if conv.transposed else shape)[channel_dim + 1 :]
    uses = math.prod(positions) * math.prod(weight_shape[2:])
    leading = zip(data_shape[:channel_dim], walk.axes(conv.data)[:channel_dim], strict=True)
    return Term.of((uses, None), *leading, (weight_shape[0], weight_axes[0]), (weight_shape[1], weight_axes[1]))


def _grouped(walk: Walk, node: Node, conv: Convolution, in_axis: Axis) -> tuple[Axis, Size]:
    """Output channels of a grouped convolution, and the number of groups after pruning.

    Depthwise kernels (one input channel a group) lose whole groups. Otherwise the number of groups stays and position k leaves in every
    group ("balanced"), or whole groups leave ("whole").
    """
    long_size, short_size = walk.shape(conv.weight)[:2]
    in_per_group = long_size // conv.groups if conv.transposed else short_size
    if walk.options.conv_groups == "whole" or in_per_group == 1:
        return _whole_groups(walk, node, conv, in_axis)
    if not (walk.zero(conv.weight) or walk.zero(conv.data)):
        walk.pin((in_axis, *walk.axes(conv.weight)[:2]), node, NOT_ZERO)
    return _balanced_groups(walk, node, conv, in_axis), conv.groups


def _whole_groups(walk: Walk, node: Node, conv: Convolution, in_axis: Axis) -> tuple[Axis, Size]:
    """Let groups leave with all their input and output channels."""
    labels, where, groups = walk.labels, walk.where(node), conv.groups
    long_axis, short_axis = walk.axes(conv.weight)[:2]
    walk.pin([short_axis], node, "is a part of a convolution group in")
    if in_axis is None or long_axis is None:
        walk.pin((in_axis, long_axis), node, "meets a fixed dimension in")
        return None, groups
    group_axis = labels.tie_within_runs(in_axis, groups, where)
    labels.equate(group_axis, labels.tie_within_runs(long_axis, groups, where), where)
    out_axis = repeat_each(group_axis, walk.shape(conv.weight)[1]) if conv.transposed else long_axis
    return out_axis, group_axis


def _balanced_groups(walk: Walk, node: Node, conv: Convolution, in_axis: Axis) -> Axis:
    """Position k leaves in every group, on either side; the number of groups stays."""
    labels, where, groups = walk.labels, walk.where(node), conv.groups
    long_axis, short_axis = walk.axes(conv.weight)[:2]
    if conv.transposed:
        labels.equate(in_axis, long_axis, where)
        if long_axis is not None:
            labels.tie_runs(long_axis, groups, where)
        return repeat_whole(short_axis, groups)
    labels.equate(in_axis, repeat_whole(short_axis, groups), where)
    if long_axis is not None and len(long_axis) > groups:
        labels.tie_runs(long_axis, groups, where)
    else:
        walk.pin([long_axis], node, "has one output channel in each convolution group in")
    return long_axis


_ALIGNED_ENTRIES = 8
"""The kernel of grouped products takes rows of a multiple of 16 bytes: 8 entries in half precision, which a network may be cast to."""


def grouped_matmul(walk: Walk, node: Node) -> Outcome:
    """_grouped_mm(x, w, offs): rows of x [rows, in], in runs that offs marks, each times its own matrix of w [groups, in, out].

    Every row meets one matrix, whatever the runs are, so the cost does not depend on the data. The matrices are looked up by number.
    """
    data, weight = tensor_argument(node, 0), tensor_argument(node, 1)
    if (len(walk.shape(data)), len(walk.shape(weight))) != (2, 3):
        return replace(kept_whole(walk, node, "is a run of a grouped product in"), costed=False)
    rows, inner = walk.axes(data)
    groups, _, columns = walk.axes(weight)
    walk.pin([rows, groups], node, "is looked up by number in")
    contract(walk, node, (data, -1), (weight, -2))
    for axis in (inner, columns):
        if axis is not None:
            walk.labels.divisible.append(Divisible(axis, math.gcd(len(axis), _ALIGNED_ENTRIES), runs=False))
    macs = Term.of((walk.shape(data)[0], None), (walk.shape(data)[1], inner), (walk.shape(weight)[2], columns))
    zero = walk.zero(weight) and not isinstance(arguments(node).get("bias"), Node)
    return Outcome(outputs=((None, columns),), macs=(macs,), zero=zero)


def solve_triangular(walk: Walk, node: Node) -> Outcome:
    """linalg_solve_triangular(a, b): a [..., n, n] is inverted, columns of b [..., n, columns] are solved one by one.

    A solve costs no MACs here: the reference counter, like the literature, has no formula for it.
    """
    matrix, values = tensor_argument(node, 0), tensor_argument(node, 1)
    left = bool(arguments(node)["left"])
    axes = walk.axes(values)
    solved, columns = (axes[-2], axes[-1]) if left else (axes[-1], axes[-2])
    walk.pin((*walk.axes(matrix)[-2:], solved), node, "is solved for in")
    batch = _batch_axes(walk, node, matrix, values, output_shapes(node)[0][:-2])
    last = (None, columns) if left else (columns, None)
    return Outcome(outputs=((*batch, *last),), zero=walk.zero(values))


def distances(walk: Walk, node: Node) -> Outcome:
    """cdist(a, b): differences along the last dimension, exact where both are zero; no products that the reference counter counts."""
    tensors = tensor_argument(node, 0), tensor_argument(node, 1)
    features = [walk.axes(tensor)[-1] for tensor in tensors]
    walk.labels.equate(features[0], features[1], walk.where(node))
    if not all(map(walk.zero, tensors)):
        walk.pin(features, node, NOT_ZERO)
    batch = _batch_axes(walk, node, *tensors, output_shapes(node)[0][:-2])
    return Outcome(outputs=((*batch, *(walk.axes(tensor)[-2] for tensor in tensors)),))


RULES: dict[str, Rule] = {
    "aten.linear": linear,
    **dict.fromkeys(ops("addmm baddbmm addmv"), addmm),
    **dict.fromkeys(ops("matmul mm bmm mv dot vdot"), matmul),
    **dict.fromkeys(("aten._grouped_mm", "transformers.grouped_mm_fallback"), grouped_matmul),
    "aten.linalg_solve_triangular": solve_triangular,
    "aten.cdist": distances,
    "aten.scaled_dot_product_attention": attention,
    **dict.fromkeys(ops("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"), convolution),
}
