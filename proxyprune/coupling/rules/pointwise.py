"""Elementwise ops: dimensions meet by broadcasting. Which ops are elementwise is torch's own `pointwise` tag."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Node

from proxyprune.coupling.outcome import Outcome, Sizes
from proxyprune.coupling.rules.norm_statistics import is_held
from proxyprune.coupling.rules.walk import (
    Rule,
    Walk,
    broadcast,
    fixed,
    in_place,
    kept_whole,
    ops,
    product_is_zero,
    sizes_of,
    sum_is_zero,
    written_in_place,
)
from proxyprune.tracing.nodes import arguments, is_tensor, op_name, output_shapes, tensor_argument

COPIES = in_place(ops("clone contiguous to _to_copy type_as alias detach lift_fresh_copy lift_fresh positive dropout feature_dropout"))
"""The first argument with another layout or type; a second tensor says which type only."""

_KEEP_ZERO = in_place(
    ops(
        "relu relu6 gelu silu tanh hardswish leaky_relu elu celu selu mish hardtanh softshrink hardshrink rrelu native_dropout "
        "abs absolute neg negative sqrt square sin sinh tan asin asinh atan arctan atanh erf erfinv sign sgn round floor ceil trunc fix "
        "frac expm1 log1p nan_to_num real imag conj conj_physical resolve_conj resolve_neg deg2rad rad2deg"
    )
)
"""f(0) = 0 for each of these."""

_PRODUCTS = in_place(ops("mul multiply"))
_SUMS = in_place(ops("add sub subtract maximum minimum fmax fmin lerp hypot addcmul"))
_SUBTRACTIONS = frozenset(in_place(ops("sub subtract")))
_QUOTIENTS = in_place(ops("div divide true_divide"))
_UNTAGGED = ops(
    "__and__ __or__ __xor__ floor_divide floor_divide_ log_sigmoid polar complex where masked_fill masked_fill_ copy_ bernoulli bernoulli_ "
    "not_equal greater greater_equal less less_equal arctan2 divide multiply subtract true_divide threshold_ isclose _prelu_kernel "
    "alpha_dropout alpha_dropout_ feature_alpha_dropout feature_alpha_dropout_"
)
"""Elementwise, although torch does not tag them so."""


def pointwise(walk: Walk, node: Node) -> Outcome:
    """Any elementwise op on tensors and scalars."""
    name = op_name(node)
    tensors = [source for source in node.all_input_nodes if is_tensor(source)]
    if name in COPIES:
        tensors = tensors[:1]
    shapes = output_shapes(node)
    axes = broadcast(walk, node, tensors, shapes[0])
    check = _ZERO_RULES.get(name)
    zero = bool(tensors) and check is not None and check(walk, node, Outcome(outputs=(axes,)), tensors)
    return written_in_place(walk, node, Outcome(outputs=(axes,) * len(shapes), zero=zero))


ZeroRule = Callable[[Walk, Node, Outcome, list[Node]], bool]
"""Says whether an elementwise result is zero at dropped positions, from its axes and the tensors that go in."""


def _kept(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    return walk.zero(tensors[0])


def _bounded(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    """hardtanh keeps zero when zero lies between its bounds."""
    values = arguments(node)
    return walk.zero(tensors[0]) and float(values["min_val"]) <= 0 <= float(values["max_val"])


def _product(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    return product_is_zero(walk, outcome.outputs[0], walk.shape(node), tensors)


def _sum(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    """Join the summands of a sum, which needs all of them; x - mean(x) counts as x where the mean is a statistic that is held fixed."""
    others = [value for value in node.args[1:] if not isinstance(value, Node)]
    if len(tensors) == 1 and any(value != 0 for value in others):
        return False
    if op_name(node) in _SUBTRACTIONS and len(tensors) == 2 and is_held(walk, tensors[1]):
        tensors = tensors[:1]
    return sum_is_zero(walk, outcome.outputs[0], walk.shape(node), tensors)


def _first(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    """Let the first argument decide, where it has entries of its own."""
    first = node.args[0]
    return isinstance(first, Node) and sum_is_zero(walk, outcome.outputs[0], walk.shape(node), [first])


def _power(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    exponent = node.args[1]
    return isinstance(exponent, int | float) and exponent > 0 and walk.zero(tensors[0])


def _filled_with_zero(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    value = node.args[2]
    return isinstance(value, int | float) and value == 0 and _first(walk, node, outcome, tensors)


def _copied(walk: Walk, node: Node, outcome: Outcome, tensors: list[Node]) -> bool:
    return sum_is_zero(walk, outcome.outputs[0], walk.shape(node), [tensor_argument(node, 1)])


_ZERO_RULES: dict[str, ZeroRule] = {
    **dict.fromkeys((*COPIES, *_KEEP_ZERO, *ops("prelu")), _kept),
    **dict.fromkeys(in_place(ops("hardtanh")), _bounded),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys((*_QUOTIENTS, *ops("_prelu_kernel")), _first),
    **dict.fromkeys(in_place(ops("pow")), _power),
    **dict.fromkeys(in_place(ops("masked_fill")), _filled_with_zero),
    **dict.fromkeys(ops("copy_"), _copied),
}


def prelu(walk: Walk, node: Node) -> Outcome:
    """prelu(x, weight): one slope, or one a channel (dimension 1)."""
    data, weight = tensor_argument(node, 0), tensor_argument(node, 1)
    axes = list(walk.axes(data))
    slopes = walk.axes(weight)
    if slopes and walk.shape(weight) != (1,):
        channel = 1 if len(axes) > 1 else 0
        axes[channel] = walk.labels.unify([axes[channel], slopes[0]], walk.where(node))
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(data))


def broadcast_tensors(walk: Walk, node: Node) -> Outcome:
    """broadcast_tensors(tensors): each is stretched to the common shape."""
    tensors, shapes = node.all_input_nodes, output_shapes(node)
    axes = broadcast(walk, node, tensors, shapes[0])
    return Outcome(outputs=(axes,) * len(shapes), zero=sum_is_zero(walk, axes, shapes[0], tensors))


def filled(walk: Walk, node: Node) -> Outcome:
    """Return a tensor of one repeated value: it can have any size, so its dimensions take whatever labels they meet."""
    shape = output_shapes(node)[0]
    axes = tuple(walk.labels.fresh(size) for size in shape)
    sizes: Sizes = {}
    for position, value in enumerate(node.args[:2]):
        if isinstance(value, list | tuple) and not sizes:
            sizes[position] = sizes_of(shape, axes)
    return Outcome(outputs=(axes,), sizes=sizes, zero=op_name(node) in _ZEROS)


_ZEROS = frozenset(ops("zeros new_zeros zeros_like zero_"))


def filled_like(walk: Walk, node: Node) -> Outcome:
    """zeros_like and its kin: the shape of the argument, one repeated value (or noise)."""
    axes = walk.axes(tensor_argument(node, 0))
    return written_in_place(walk, node, Outcome(outputs=(axes,), zero=op_name(node) in _ZEROS))


def constant(walk: Walk, node: Node) -> Outcome:
    """Values that depend on the position (arange, linspace, eye): nothing can be cut."""
    return kept_whole(walk, node, "is read by position in")


def silent(walk: Walk, node: Node) -> Outcome:
    """Accept assertions and the like, whose output nothing is computed with."""
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)))


def is_pointwise(node: Node) -> bool:
    """Return True if torch tags the op as elementwise."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) and is_tensor(node)


RULES: dict[str, Rule] = {
    **dict.fromkeys((*COPIES, *_KEEP_ZERO, *_UNTAGGED), pointwise),
    "aten.prelu": prelu,
    "aten.broadcast_tensors": broadcast_tensors,
    **dict.fromkeys(ops("zeros ones full empty new_zeros new_ones new_full new_empty"), filled),
    **dict.fromkeys(ops("zeros_like ones_like full_like empty_like rand_like randn_like zero_ fill_ normal_ uniform_"), filled_like),
    **dict.fromkeys(
        ops("arange linspace logspace eye scalar_tensor rand randn randint tril_indices triu_indices one_hot bucketize item")
        + ops("_local_scalar_dense hann_window hamming_window blackman_window kaiser_window meshgrid affine_grid_generator searchsorted"),
        constant,
    ),
    **dict.fromkeys(
        (
            *ops("_assert_tensor_metadata _assert_async _assert_scalar sym_size sym_constrain_range_for_size"),
            *ops("_has_compatible_shallow_copy_type"),
            "_set_grad_enabled",
        ),
        silent,
    ),
}
