"""Is a reduction over channels the statistic of a hand-written norm?

The mean or variance over channels changes when channels leave, as it does in every norm layer; a network takes that well when the value
normalises its own input, and "pruning equals masking" holds with such statistics held out of the way. A mean that is used in any other way
(a gate, a feature) is a signal, and must not change. So every use of the value is followed: it may be shifted, rooted and inverted,
and must end by centring or scaling the tensor that it was computed from.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

from torch.fx import Node

from proxyprune.rules.base import Walk, in_place, is_tensor, op_name, ops

_SPREADS = frozenset(ops("var std var_mean std_mean"))
_SQUARES = frozenset(in_place(ops("square pow mul")))
_CASTS = frozenset(ops("to _to_copy type_as contiguous clone detach alias"))
_CENTRING = frozenset(in_place(ops("sub subtract")))
_SCALING = frozenset(in_place(ops("mul multiply")))
_DIVIDING = frozenset(in_place(ops("div divide true_divide")))
_REARRANGING = frozenset((*ops("unsqueeze squeeze view reshape expand expand_as broadcast_to flatten"), "getitem"))
_SHAPING = frozenset(in_place(ops("add sub mul div pow sqrt rsqrt reciprocal clamp clamp_min maximum"))) | _CASTS | _REARRANGING
_MOST_USES = 64


def is_norm_statistic(walk: Walk, node: Node) -> bool:
    """True when a mean, variance or mean of squares does nothing but normalise its own input."""
    source = node.args[0]
    if op_name(node) not in _SPREADS | {"aten.mean"} or not isinstance(source, Node):
        return False
    spread = op_name(node) in _SPREADS or _is_square(source)
    original = _uncentred(_root(source) if _is_square(source) else source)
    size = max(math.prod(shape) for shape in _shapes(walk, node))
    pending, seen, used = list(node.users), {node}, False
    while pending:
        user = pending.pop()
        if user in seen:
            continue
        seen.add(user)
        scaled = _normalises(user, seen, original, spread=spread)
        if scaled:
            used = True
        elif op_name(user) in _SHAPING and len(seen) < _MOST_USES and _stays_small(walk, user, size):
            pending += user.users
        else:
            return False
    return used


def is_held(walk: Walk, node: Node) -> bool:
    """True for a statistic that `is_norm_statistic` found, possibly rearranged."""
    while node not in walk.held:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if op_name(node) not in _REARRANGING | _CASTS or not isinstance(source, Node):
            return False
        node = source
    return True


def _shapes(walk: Walk, node: Node) -> Iterator[tuple[int, ...]]:
    value = node.meta["val"]
    yield from (tuple(item.shape) for item in (value if isinstance(value, tuple | list) else (value,)))


def _normalises(user: Node, path: set[Node], original: Node, *, spread: bool) -> bool:
    """x - s and x / s, and x * s for the inverse of a spread, where x is what the statistic was computed from."""
    operands = [arg for arg in user.args[:2] if isinstance(arg, Node)]
    if len(operands) < 2 or _uncentred(operands[0]) is not original or operands[0] in path:
        swapped = len(operands) == 2 and operands[1] not in path and _uncentred(operands[1]) is original
        return spread and swapped and op_name(user) in _SCALING
    if operands[1] not in path:
        return False
    if op_name(user) in _CENTRING | _DIVIDING:
        return True
    return spread and op_name(user) in _SCALING


def _stays_small(walk: Walk, user: Node, size: int) -> bool:
    """True while the value is a statistic still: shifted by numbers or by other statistics, not spread over the data."""
    if op_name(user) in _REARRANGING or user.target is operator.getitem:
        return True
    return is_tensor(user) and math.prod(walk.shape(user)) <= size


def _is_square(node: Node) -> bool:
    name = op_name(node) if node.op == "call_function" else ""
    if name not in _SQUARES:
        return False
    if name.startswith("aten.square"):
        return True
    second = node.args[1]
    return second == 2 if "pow" in name else second is node.args[0]


def _root(square: Node) -> Node:
    base = square.args[0]
    return base if isinstance(base, Node) else square


def _uncentred(node: Node) -> Node:
    """The tensor behind casts and subtractions of a mean."""
    while node.op == "call_function" and op_name(node) in _CASTS | _CENTRING and isinstance(node.args[0], Node):
        node = node.args[0]
    return node
