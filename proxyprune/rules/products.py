"""Ops that multiply: linear, convolutions, matrix products, attention. These are the ops that cost MACs."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from proxyprune.axes import Axis
from proxyprune.rules.base import (
    Axes,
    Outcome,
    Rule,
    Size,
    Term,
    Walk,
    arguments,
    fixed,
    output_shapes,
    position_of,
    repeat_each,
    repeat_whole,
)


def linear(walk: Walk, node: Node) -> Outcome:
    """linear(x, w, b): x [..., in], w [out, in], b [out]."""
    values = arguments(node)
    data, weight, bias = values["input"], values["weight"], values["bias"]
    where = walk.where(node)
    _contract(walk, node, (data, -1), (weight, 1))
    out = walk.axes(weight)[0] if len(walk.shape(weight)) == 2 else None
    if bias is not None:
        out = walk.labels.unify([out, walk.axes(bias)[0]], where)
    shape = output_shapes(node)[0]
    axes = (*walk.axes(data)[:-1], out) if len(walk.shape(weight)) == 2 else walk.axes(data)[:-1]
    inner = (walk.shape(data)[-1], walk.axes(data)[-1])
    zero = walk.zeros.get(weight, False) and (bias is None or walk.zeros.get(bias, False))
    return Outcome(outputs=(axes,), macs=(Term.of(*zip(shape, axes, strict=True), inner),), zero=zero)


def addmm(walk: Walk, node: Node) -> Outcome:
    """addmm(b, x, w): b + x @ w, with w [in, out]."""
    bias, data, weight = node.args[:3]
    assert isinstance(bias, Node)
    product = _product(walk, node, data, weight)
    (axes,) = product.outputs
    bias_axes = walk.axes(bias)
    aligned = (None,) * (len(axes) - len(bias_axes)) + bias_axes
    shape = output_shapes(node)[0]
    bias_shape = (1,) * (len(axes) - len(bias_axes)) + walk.shape(bias)
    merged = tuple(
        walk.labels.unify([axis, other], walk.where(node)) if own == size else axis
        for axis, other, own, size in zip(axes, aligned, bias_shape, shape, strict=True)
    )
    return Outcome(outputs=(merged,), macs=product.macs, zero=product.zero and walk.zeros.get(bias, False))


def matmul(walk: Walk, node: Node) -> Outcome:
    """matmul, mm, bmm: the last dimension of the first meets the second-to-last of the second."""
    return _product(walk, node, node.args[0], node.args[1])


def _product(walk: Walk, node: Node, left: Any, right: Any) -> Outcome:
    left_shape, right_shape = walk.shape(left), walk.shape(right)
    _contract(walk, node, (left, -1), (right, -2 if len(right_shape) > 1 else 0))
    shape = output_shapes(node)[0]
    rows = () if len(left_shape) == 1 else (walk.axes(left)[-2],)
    columns = () if len(right_shape) == 1 else (walk.axes(right)[-1],)
    batch = _batch_axes(walk, node, left, right, shape[: len(shape) - len(rows) - len(columns)])
    axes: Axes = (*batch, *rows, *columns)
    inner = (left_shape[-1], walk.axes(left)[-1])
    zero = _dropped_is_zero(walk, left, right, len(batch), rows, columns)
    return Outcome(outputs=(axes,), macs=(Term.of(*zip(shape, axes, strict=True), inner),), zero=zero)


def _dropped_is_zero(walk: Walk, left: Node, right: Node, batch: int, rows: Axes, columns: Axes) -> bool:
    """Zero where a batch entry or row (from the left) or a batch entry or column (from the right) was dropped."""
    left_zero, right_zero = walk.zeros.get(left, False), walk.zeros.get(right, False)
    if any(axis is not None for axis in rows) and not left_zero:
        return False
    if any(axis is not None for axis in columns) and not right_zero:
        return False
    return left_zero or right_zero


def _batch_axes(walk: Walk, node: Node, left: Node, right: Node, shape: tuple[int, ...]) -> Axes:
    result: list[Axis] = []
    for offset in range(len(shape), 0, -1):
        meeting = []
        for operand in (left, right):
            own = walk.shape(operand)[:-2]
            if offset <= len(own) and (own[-offset] != 1 or shape[-offset] == 1):
                meeting.append(walk.axes(operand)[-2 - offset])
        axis = walk.labels.unify(meeting, walk.where(node)) if meeting else None
        if axis is not None:
            walk.labels.heads.append(axis)
        result.append(axis)
    return tuple(result)


def _contract(walk: Walk, node: Node, first: tuple[Node, int], second: tuple[Node, int]) -> None:
    """Sum over a shared dimension: cutting it is exact when at least one factor is zero in the dropped positions."""
    axes = [walk.axes(operand)[dim] for operand, dim in (first, second)]
    walk.labels.equate(axes[0], axes[1], walk.where(node))
    if not any(walk.zeros.get(operand, False) for operand, _ in (first, second)):
        for axis in axes:
            walk.labels.pin(axis, f"is summed over in {walk.where(node)}, where dropped values are not zero")


def einsum(walk: Walk, node: Node) -> Outcome:
    """einsum(equation, operands): equal letters meet; letters that vanish are summed over."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    assert isinstance(operands, list | tuple)
    inputs, _, output = equation.partition("->")
    letters: dict[str, list[tuple[Node, int]]] = {}
    sizes: dict[str, int] = {}
    for term, operand in zip(inputs.split(","), operands, strict=True):
        assert isinstance(operand, Node)
        for dim, letter in enumerate(_spell_out(term, len(walk.shape(operand)))):
            letters.setdefault(letter, []).append((operand, dim))
            sizes[letter] = max(sizes.get(letter, 1), walk.shape(operand)[dim])
    shape = output_shapes(node)[0]
    kept = _spell_out(output, len(shape)) if "->" in equation else sorted(letter for letter, uses in letters.items() if len(uses) == 1)
    axes: dict[str, Axis] = {}
    for letter, uses in letters.items():
        meeting = [walk.axes(operand)[dim] for operand, dim in uses if walk.shape(operand)[dim] == sizes[letter]]
        axes[letter] = walk.labels.unify(meeting, walk.where(node))
        holders = {operand for operand, _ in uses}
        if len(holders) < len(uses):
            walk.labels.pin(axes[letter], f"stands twice in one operand of {walk.where(node)}")
        if letter not in kept and not any(walk.zeros.get(operand, False) for operand in holders):
            walk.labels.pin(axes[letter], f"is summed over in {walk.where(node)}, where dropped values are not zero")
        if letter in kept and len(holders) > 1 and axes[letter] is not None:
            walk.labels.heads.append(axes[letter])  # type: ignore[arg-type]
    macs = (Term.of(*((sizes[letter], axes[letter]) for letter in letters)),) if len(operands) == 2 else ()
    zero = all(any(walk.zeros.get(operand, False) for operand, _ in letters[letter]) for letter in kept if axes.get(letter) is not None)
    result = tuple(axes.get(letter) for letter in kept)
    return Outcome(outputs=(result,), macs=macs, zero=zero, costed=len(operands) <= 2)


def _spell_out(term: str, ndim: int) -> list[str]:
    """Letters of one operand, with '...' replaced by numbered dimensions counted from the right."""
    if "..." not in term:
        return list(term)
    head, _, tail = term.partition("...")
    hidden = ndim - len(head) - len(tail)
    return [*head, *(f"...{index}" for index in range(hidden, 0, -1)), *tail]


def attention(walk: Walk, node: Node) -> Outcome:
    """scaled_dot_product_attention(q, k, v): [..., heads, length, head_dim].

    Whole heads can leave. The head dimension is pinned, because the default scale is made from it. With fewer key heads
    than query heads, all queries of a key head leave with it, so the ratio stays.
    """
    values = arguments(node)
    query, key, value, mask = values["query"], values["key"], values["value"], values.get("attn_mask")
    where = walk.where(node)
    q_shape, k_shape, v_shape = walk.shape(query), walk.shape(key), walk.shape(value)
    q_axes, k_axes, v_axes = walk.axes(query), walk.axes(key), walk.axes(value)
    for axes, dim in ((q_axes, -1), (k_axes, -1), (v_axes, -1), (q_axes, -2), (k_axes, -2), (v_axes, -2)):
        walk.labels.pin(axes[dim], f"is a head dimension or a sequence in {where}")
    batch: list[Axis] = []
    for dim in range(len(q_shape) - 2):
        axis = q_axes[dim]
        for axes, shape in ((k_axes, k_shape), (v_axes, v_shape)):
            if shape[dim] == q_shape[dim]:
                axis = walk.labels.unify([axis, axes[dim]], where)
            elif shape[dim] > 1:
                walk.labels.equate(q_axes[dim], repeat_each(axes[dim], q_shape[dim] // shape[dim]), where)
        if axis is not None:
            walk.labels.heads.append(axis)
        batch.append(axis)
    if isinstance(mask, Node):
        _meet_mask(walk, mask, (*batch, None, None), q_shape[:-2], where)
    length, keys, head_dim, value_dim = q_shape[-2], k_shape[-2], q_shape[-1], v_shape[-1]
    leading = list(zip(q_shape[:-2], batch, strict=True))
    macs = (
        Term.of(*leading, (length, None), (keys, None), (head_dim, None)),
        Term.of(*leading, (length, None), (keys, None), (value_dim, None)),
    )
    zero = walk.zeros.get(value, False)
    return Outcome(outputs=((*batch, q_axes[-2], v_axes[-1]),), macs=macs, zero=zero)


def _meet_mask(walk: Walk, mask: Node, axes: Axes, leading: tuple[int, ...], where: str) -> None:
    shape, own = walk.shape(mask), walk.axes(mask)
    for offset in range(3, len(shape) + 1):
        if shape[-offset] == leading[2 - offset]:
            walk.labels.equate(own[-offset], axes[-offset], where)
    for axis in own[-2:]:
        walk.labels.pin(axis, f"is a sequence in {where}")


def convolution(walk: Walk, node: Node) -> Outcome:
    """conv1d, conv2d, conv3d: x [n, in, ...], w [out, in / groups, ...]."""
    values = arguments(node)
    return _convolution(walk, node, values["input"], values["weight"], values["bias"], int(values["groups"]), transposed=False)


def transposed_convolution(walk: Walk, node: Node) -> Outcome:
    """conv_transpose1d, 2d, 3d: x [n, in, ...], w [in, out / groups, ...]."""
    values = arguments(node)
    return _convolution(walk, node, values["input"], values["weight"], values["bias"], int(values["groups"]), transposed=True)


def general_convolution(walk: Walk, node: Node) -> Outcome:
    """aten.convolution, which carries a `transposed` flag."""
    values = arguments(node)
    return _convolution(
        walk, node, values["input"], values["weight"], values["bias"], int(values["groups"]), transposed=bool(values["transposed"])
    )


def _convolution(walk: Walk, node: Node, data: Node, weight: Node, bias: Node | None, groups: int, *, transposed: bool) -> Outcome:
    labels, where = walk.labels, walk.where(node)
    data_shape, weight_shape, shape = walk.shape(data), walk.shape(weight), output_shapes(node)[0]
    channel_dim = len(data_shape) - len(weight_shape) + 1  # 0 for an input without a batch dimension
    data_axes, weight_axes = walk.axes(data), walk.axes(weight)
    for axes in (data_axes[channel_dim + 1 :], weight_axes[2:]):
        for axis in axes:
            labels.pin(axis, "is a kernel or spatial dimension")
    in_axis, kernel_in, kernel_out = data_axes[channel_dim], weight_axes[int(not transposed)], weight_axes[int(transposed)]
    out_axis: Axis = kernel_out
    group_size: Size = groups
    if groups > 1:
        out_axis, group_size = _grouped(walk, node, in_axis, weight_axes, weight_shape, groups, transposed)
    else:
        in_axis = labels.unify([in_axis, kernel_in], where)
        if not _kernel_is_zero(walk, weight):
            labels.pin(in_axis, f"is summed over in {where}, where dropped values are not zero")
    if bias is not None:
        out_axis = labels.unify([out_axis, walk.axes(bias)[0]], where)
    axes = (*data_axes[:channel_dim], out_axis, *(None for _ in weight_shape[2:]))
    spatial = data_shape[channel_dim + 1 :] if transposed else shape[channel_dim + 1 :]
    # every kernel entry is used once for each position of the output (of the input, when transposed)
    uses = math.prod(spatial) * math.prod(weight_shape[2:])
    leading = zip(data_shape[:channel_dim], data_axes[:channel_dim], strict=True)
    macs = Term.of((uses, None), *leading, (weight_shape[0], weight_axes[0]), (weight_shape[1], weight_axes[1]))
    zero = _kernel_is_zero(walk, weight) and (bias is None or walk.zeros.get(bias, False))
    sizes: dict[int | str, Size | tuple[Size, ...]] = {} if isinstance(group_size, int) else {position_of(node, "groups"): group_size}
    return Outcome(outputs=(axes,), sizes=sizes, macs=(macs,), zero=zero)


def _kernel_is_zero(walk: Walk, weight: Node) -> bool:
    return walk.zeros.get(weight, False)


def _grouped(
    walk: Walk, node: Node, data_axis: Axis, weight_axes: Axes, weight_shape: tuple[int, ...], groups: int, transposed: bool
) -> tuple[Axis, Size]:
    """Output channels of a grouped convolution, and the number of groups after pruning.

    Depthwise kernels (one input channel a group) lose whole groups. Otherwise the number of groups stays and position k leaves in every
    group ("balanced"), or whole groups leave ("whole").
    """
    labels, where = walk.labels, walk.where(node)
    long_axis, short_axis = weight_axes[0], weight_axes[1]
    per_group_long, short = weight_shape[0] // groups, weight_shape[1]
    in_per_group, out_per_group = (per_group_long, short) if transposed else (short, per_group_long)
    if walk.options.conv_groups == "whole" or in_per_group == 1:
        labels.pin(short_axis, f"is a part of a convolution group in {where}")
        if data_axis is None or long_axis is None:
            labels.pin(data_axis, f"meets a fixed dimension in {where}")
            labels.pin(long_axis, f"meets a fixed dimension in {where}")
            return None, groups
        group_axis = labels.tie_within_runs(data_axis, groups, where) if in_per_group > 1 else data_axis
        other = labels.tie_within_runs(long_axis, groups, where) if per_group_long > 1 else long_axis
        labels.equate(group_axis, other, where)
        out_axis = repeat_each(group_axis, out_per_group) if transposed else long_axis
        return out_axis, group_axis
    if transposed:
        in_axis = None if data_axis is None else labels.unify([data_axis, long_axis], where)
        if data_axis is None:
            labels.pin(long_axis, f"meets a fixed dimension in {where}")
        elif in_axis is not None:
            labels.tie_runs(in_axis, groups, where)
        return repeat_whole(short_axis, groups), groups
    labels.equate(data_axis, repeat_whole(short_axis, groups), where)
    if long_axis is not None and per_group_long > 1:
        labels.tie_runs(long_axis, groups, where)
    elif long_axis is not None:
        labels.pin(long_axis, f"has one output channel in each convolution group in {where}")
    return long_axis, groups


def recurrent(walk: Walk, node: Node) -> Outcome:
    """lstm, gru, rnn: gates are packed in one matrix and the state is carried along, so nothing inside is cut.

    Every weight matrix is used once for each step and sequence.
    """
    walk.pin_all(node, f"belongs to {walk.where(node)}, which is kept whole")
    values = arguments(node)
    data = values["input"] if "input" in values else values["data"]
    steps = math.prod(walk.shape(data)[:-1]) if len(walk.shape(data)) == 3 else walk.shape(data)[0]
    weights = [walk.shape(weight) for weight in values["params"] if len(walk.shape(weight)) == 2]
    macs = tuple(Term(steps * math.prod(shape)) for shape in weights)
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)), macs=macs)


RULES: dict[str, Rule] = {
    "aten.linear": linear,
    "aten.addmm": addmm,
    "aten.baddbmm": addmm,
    **dict.fromkeys(("aten.matmul", "aten.mm", "aten.bmm"), matmul),
    "aten.einsum": einsum,
    "aten.scaled_dot_product_attention": attention,
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), convolution),
    **dict.fromkeys(("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"), transposed_convolution),
    "aten.convolution": general_convolution,
    **dict.fromkeys(("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"), recurrent),
}
