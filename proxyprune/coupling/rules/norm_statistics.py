"""Find reductions over channels that are the statistic of a hand-written norm.

The mean or variance over channels changes when channels leave, as it does in every norm layer; a network takes that well when the value
normalises its own input, and "pruning equals masking" holds with such statistics held out of the way. A mean that is used in any other way
(a gate, a feature) is a signal, and must not change. So every use of the value is followed: it may be shifted, rooted and inverted,
and must end by centring or scaling the tensor that it was computed from.
"""

from __future__ import annotations

import math

from torch.fx import Node

from proxyprune.coupling.rules.walk import Walk, in_place, ops
from proxyprune.tracing.nodes import is_tensor, op_name, output_shapes

_SPREADS = frozenset(ops("var std var_mean std_mean"))
_SQUARES = frozenset(in_place(ops("square pow mul")))
_CASTS = frozenset(ops("to _to_copy type_as contiguous clone detach alias"))
_CENTRING = frozenset(in_place(ops("sub subtract")))
_SCALING = frozenset(in_place(ops("mul multiply")))
_DIVIDING = frozenset(in_place(ops("div divide true_divide")))
_REARRANGING = frozenset((*ops("unsqueeze squeeze view reshape expand expand_as broadcast_to flatten"), "getitem"))
_SHIFTING = frozenset(in_place(ops("add clamp clamp_min maximum"))) | _CASTS | _REARRANGING
_SHAPING = frozenset(in_place(ops("sub mul div pow sqrt rsqrt reciprocal"))) | _SHIFTING
_MOST_USES = 64


def is_norm_statistic(walk: Walk, node: Node) -> bool:
    """Return True if a mean, variance or mean of squares does nothing but normalise its own input.

    A mean may only be shifted on its way (x - mean, x / (mean + eps)), a spread or a squared mean may be shaped as norms do.
    """
    source = node.args[0] if node.args else None
    if op_name(node) not in _SPREADS | {"aten.mean"} or not isinstance(source, Node):
        return False
    original = _uncentred(walk, _root(source), set())
    size = max(math.prod(shape) for shape in output_shapes(node))
    pending = [(user, op_name(node) in _SPREADS or _is_square(source)) for user in node.users]
    path, used = {node}, False
    while pending:
        user, spread = pending.pop()
        if _normalises(walk, user, path, original, spread=spread):
            used = True
            continue
        spread = spread or _is_square(user)
        if op_name(user) not in (_SHAPING if spread else _SHIFTING) or len(path) > _MOST_USES or not _stays_small(walk, user, size):
            return False
        if user not in path:
            path.add(user)
            pending += [(reader, spread) for reader in user.users]
    return used


def is_held(walk: Walk, node: Node) -> bool:
    """Return True for a statistic that `is_norm_statistic` found, possibly rearranged."""
    while node not in walk.held:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if op_name(node) not in _REARRANGING | _CASTS or not isinstance(source, Node):
            return False
        node = source
    return True


def _normalises(walk: Walk, user: Node, path: set[Node], original: Node, *, spread: bool) -> bool:
    """x - s and x / s, and x * s for (the inverse of) a spread, where x is what the statistic was computed from."""
    operands = [operand for operand in user.args[:2] if isinstance(operand, Node)]
    if len(operands) < 2:
        return False
    if spread and op_name(user) in _SCALING:
        data = [operand for operand in operands if operand not in path]
        return len(data) == 1 and _uncentred(walk, data[0], path) is original
    shifted = op_name(user) in _CENTRING | _DIVIDING and operands[1] in path and operands[0] not in path
    return shifted and _uncentred(walk, operands[0], path) is original


def _stays_small(walk: Walk, user: Node, size: int) -> bool:
    """Return True while the value is a statistic still: shifted by numbers or by other statistics, not spread over the data."""
    if op_name(user) in _REARRANGING:
        return True
    return is_tensor(user) and math.prod(walk.shape(user)) <= size


def _is_square(node: Node) -> bool:
    name = op_name(node) if node.op == "call_function" else ""
    if name not in _SQUARES:
        return False
    if name.startswith("aten.square"):
        return True
    second = node.args[1]
    return (isinstance(second, int | float) and second == 2) if "pow" in name else second is node.args[0]


def _root(node: Node) -> Node:
    """Return the tensor that is squared, or the node itself."""
    base = node.args[0] if _is_square(node) else node
    return base if isinstance(base, Node) else node


def _uncentred(walk: Walk, node: Node, path: set[Node]) -> Node:
    """Return the tensor behind casts and the subtraction of its mean."""
    while node.op == "call_function" and isinstance(node.args[0], Node):
        mean = node.args[1] if op_name(node) in _CENTRING else None
        centred = isinstance(mean, Node) and (mean in path or is_held(walk, mean))
        if not centred and op_name(node) not in _CASTS:
            break
        node = node.args[0]
    return node
