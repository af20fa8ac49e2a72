"""Elementwise ops: dimensions meet by broadcasting. Which ops are elementwise is torch's own `pointwise` tag."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from proxyprune.rules.base import Outcome, Rule, Size, Walk, broadcast, fixed, op_name, output_shapes

ZERO_KEEPING = frozenset(
    f"aten.{name}"
    for base in (
        "relu", "relu6", "gelu", "silu", "tanh", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish", "hardtanh", "softshrink", "hardshrink",
        "abs", "neg", "sqrt", "square", "sin", "sinh", "asinh", "atan", "erf", "sign", "round", "floor", "ceil", "trunc", "frac", "expm1", "log1p", "rrelu",
        "nan_to_num", "dropout", "alpha_dropout", "feature_dropout", "clone", "contiguous", "to", "_to_copy", "alias", "detach",
        "lift_fresh_copy", "lift_fresh", "type_as", "native_dropout", "positive", "real", "conj",
    )
    for name in (base, base + "_")
)  # fmt: skip
"""f(0) = 0 for each of these."""

ANY_ZERO = frozenset({"aten.mul", "aten.mul_", "aten.multiply", "aten.multiply_"})
ALL_ZERO = frozenset(
    {"aten.add", "aten.add_", "aten.sub", "aten.sub_", "aten.maximum", "aten.minimum", "aten.lerp", "aten.where", "aten.hypot"}
)
FIRST_ZERO = frozenset(
    {"aten.div", "aten.div_", "aten.divide", "aten.true_divide", "aten.pow", "aten.prelu", "aten._prelu_kernel", "aten.masked_fill"}
)


def pointwise(walk: Walk, node: Node) -> Outcome:
    """Any elementwise op on tensors and scalars."""
    tensors = [source for source in node.all_input_nodes if walk.outputs[source]]
    shapes = output_shapes(node)
    axes = broadcast(walk, node, tensors, shapes[0])
    return Outcome(outputs=(axes,) * len(shapes), zero=_keeps_zero(walk, node, tensors))


def _keeps_zero(walk: Walk, node: Node, tensors: list[Node]) -> bool:
    name = op_name(node)
    zeros = [walk.zeros.get(tensor, False) for tensor in tensors]
    if not zeros:
        return False
    if name in ZERO_KEEPING:
        return zeros[0]
    if name in ANY_ZERO:
        return any(zero and walk.shape(tensor) == walk.shape(node) for zero, tensor in zip(zeros, tensors, strict=True)) or _spanning_zero(
            walk, node, tensors, zeros
        )
    if name in ALL_ZERO:
        scalar_shift = name.startswith(("aten.add", "aten.sub")) and len(tensors) == 1 and len(node.args) > 1 and node.args[1] != 0
        return all(zeros) and not scalar_shift
    if name in FIRST_ZERO:
        return zeros[0]
    return False


def _spanning_zero(walk: Walk, node: Node, tensors: list[Node], zeros: list[bool]) -> bool:
    """A product is zero where a factor is, provided that this factor covers every cut dimension of the result."""
    shape = walk.shape(node)
    for tensor, zero in zip(tensors, zeros, strict=True):
        own = (1,) * (len(shape) - len(walk.shape(tensor))) + walk.shape(tensor)
        others = [other for other in tensors if other is not tensor]
        stretched = [index for index, size in enumerate(own) if size == 1 and shape[index] != 1]
        labelled = any(
            walk.axes(other)[index - len(shape)] is not None
            for other in others
            for index in stretched
            if len(shape) - index <= len(walk.shape(other))
        )
        if zero and not labelled:
            return True
    return False


def prelu(walk: Walk, node: Node) -> Outcome:
    """prelu(x, weight): one slope, or one a channel (dimension 1)."""
    data, weight = node.args[:2]
    assert isinstance(data, Node)
    assert isinstance(weight, Node)
    axes = list(walk.axes(data))
    if walk.shape(weight) != (1,) and len(axes) > 1:
        axes[1] = walk.labels.unify([axes[1], walk.axes(weight)[0]], walk.where(node))
    return Outcome(outputs=(tuple(axes),), zero=walk.zeros.get(data, False))


def filled(walk: Walk, node: Node) -> Outcome:
    """A tensor of one repeated value: it can have any size, so its dimensions take whatever labels they meet."""
    shape = output_shapes(node)[0]
    axes = tuple(walk.labels.fresh(size) for size in shape)
    sizes: dict[int | str, Size | tuple[Size, ...]] = {}
    if node.args and isinstance(node.args[0], list | tuple):
        sizes = {0: tuple(size if axis is None else axis for size, axis in zip(shape, axes, strict=True))}
    elif len(node.args) > 1 and isinstance(node.args[1], list | tuple):
        sizes = {1: tuple(size if axis is None else axis for size, axis in zip(shape, axes, strict=True))}
    return Outcome(outputs=(axes,), sizes=sizes, zero=op_name(node) in ("aten.zeros", "aten.new_zeros"))


def filled_like(walk: Walk, node: Node) -> Outcome:
    """zeros_like and its kin: the shape of the argument, one repeated value (or noise)."""
    source = node.args[0]
    assert isinstance(source, Node)
    return Outcome(outputs=(walk.axes(source),), zero=op_name(node) == "aten.zeros_like")


def constant(walk: Walk, node: Node) -> Outcome:
    """Values that depend on the position (arange, linspace, eye): nothing can be cut."""
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)))


def silent(walk: Walk, node: Node) -> Outcome:
    """Assertions and the like: no output."""
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)))


def is_pointwise(node: Node) -> bool:
    """True when torch tags the op as elementwise."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) and isinstance(node.meta.get("val"), Tensor)


RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted(ZERO_KEEPING), pointwise),
    **dict.fromkeys(("aten.masked_fill", "aten.__and__", "aten.__or__", "aten.__xor__", "aten.where", "aten.copy_", "aten.bernoulli", "aten.broadcast_tensors_"), pointwise),
    "aten.prelu": prelu,
    "aten._prelu_kernel": prelu,
    **dict.fromkeys(("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty"), filled),
    **dict.fromkeys(
        ("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like", "aten.zero_", "aten.fill_"), filled_like
    ),
    **dict.fromkeys(("aten.arange", "aten.linspace", "aten.eye", "aten.scalar_tensor", "aten.rand", "aten.randn", "aten.tril_indices"), constant),
    **dict.fromkeys(
        ("aten._assert_tensor_metadata", "aten._assert_async", "aten.sym_size", "aten.sym_constrain_range_for_size", "_set_grad_enabled"), silent
    ),
}  # fmt: skip
