"""Rules of ops that the package has none for, registered by the caller.

A registration is explicit and holds for this process until it is removed. Every trace takes the registered rules as they are when it
begins and keeps them, so that a later registration does not change a graph that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from proxyprune.coupling.outcome import Outcome, Term
from proxyprune.coupling.rules.stand_in import Likeness, match_arguments
from proxyprune.coupling.rules.table import built_in_rule
from proxyprune.coupling.rules.walk import Rule, Walk, broadcast, sum_is_zero
from proxyprune.errors import RuleError
from proxyprune.tracing.nodes import is_tensor, output_shapes

CostRule = Callable[[Walk, Node], tuple[Term, ...]]
"""The multiply-accumulates of one call, as a sum of terms."""

_registered: dict[str, Rule] = {}


@dataclass(frozen=True)
class RegisteredRule:
    """A rule that `register_rule` registered; a `with` statement removes it at its end.

    Attributes:
        op: Name of the op, "mylib.swish".
        rule: The rule in force.
        replaced: The registered rule that it took the place of, or None.
    """

    op: str
    rule: Rule
    replaced: Rule | None = None

    def remove(self) -> None:
        """Withdraw the rule and put back the one that it replaced; without effect when another rule is registered by now."""
        if _registered.get(self.op) is self.rule:
            del _registered[self.op]
            if self.replaced is not None:
                _registered[self.op] = self.replaced

    def __enter__(self) -> RegisteredRule:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def registered_rules() -> Mapping[str, Rule]:
    """Return the rules that are registered now, by op name ("mylib.swish")."""
    return dict(_registered)


def op_name_of(op: Any) -> str:
    """Return the name that rules are registered under, "mylib.swish".

    Raises:
        RuleError: If there is no such op.
    """
    return str(_overload(op).overloadpacket)


def register_rule(
    op: Any,
    rule: str | Rule,
    *,
    arguments: Mapping[str, Any] | None = None,
    cost_rule: CostRule | None = None,
    keeps_zero: bool = False,
    replace: bool = False,
) -> RegisteredRule:
    """Register how channels pass through an op, and what the op costs.

    The rule holds for every later trace of this process. Plans record the names of registered ops that they depend on.

    Args:
        op: A registered op: "mylib::swish", what `torch.library.custom_op` returns, or `torch.ops.mylib.swish`.
        rule: "pointwise" for an elementwise op; the name of a known op ("aten::linear") for an op that behaves like it; or a function
            `rule(walk, node) -> Outcome`.
        arguments: With a known op: its argument -> the name of `op`'s argument that takes its place, or the constant that it always is.
            Arguments that are not listed are matched by name, then in order by type.
        cost_rule: `cost_rule(walk, node) -> terms`, in place of the multiply-accumulates that `rule` counts. An elementwise op costs none.
        keeps_zero: Whether the op returns zero where its inputs are zero, as relu and silu do, and sigmoid does not. If unsure, leave it
            False: fewer channels can be cut, and none wrongly. For a function it is part of the `Outcome`.
        replace: Replace a rule of the package, or one that was registered before.

    Returns:
        The registration; its `remove()` withdraws it.

    Raises:
        RuleError: If `op` or `rule` names no op, if the op has a rule already, or if the arguments do not match.
    """
    overload = _overload(op)
    name = str(overload.overloadpacket)
    if not replace and (name in _registered or built_in_rule(name, overload) is not None):
        whose = "was registered before" if name in _registered else "is part of the package (or follows from torch's pointwise tag)"
        raise RuleError(f"{name} already has a rule, which {whose}. Pass replace=True to replace it.")
    chosen = _with_cost(_axis_rule(overload, rule, arguments or {}, keeps_zero=keeps_zero), cost_rule)
    registration = RegisteredRule(name, chosen, _registered.get(name))
    _registered[name] = chosen
    return registration


def _overload(op: Any) -> OpOverload:
    """Return the overload that an op, or its name, stands for.

    Raises:
        RuleError: If there is no such op.
    """
    found = getattr(op, "_opoverload", op)  # what torch.library.custom_op returns
    if isinstance(found, str):
        namespace, _, rest = found.replace("::", ".").partition(".")
        found = getattr(getattr(torch.ops, namespace), rest.partition(".")[0], None) if rest else None
        overload = rest.partition(".")[2]
        if overload:
            found = getattr(found, overload, None)
    if isinstance(found, OpOverloadPacket):
        overloads: list[str] = found.overloads()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        found = getattr(found, "default" if "default" in overloads else overloads[0])
    if not isinstance(found, OpOverload):
        raise RuleError(
            f"{op!r} is not a registered op. Expected a name such as 'mylib::swish' (after the module that defines the op was imported), "
            "what torch.library.custom_op returned, or torch.ops.mylib.swish. Plain Python functions need no rule: their ops are traced."
        )
    return found


def _axis_rule(overload: OpOverload, rule: str | Rule, arguments: Mapping[str, Any], *, keeps_zero: bool) -> Rule:
    if not isinstance(rule, str):
        if not callable(rule) or arguments or keeps_zero:
            raise RuleError("A rule is 'pointwise', the name of a known op, or a function, which takes neither arguments= nor keeps_zero=.")
        return rule
    if rule == "pointwise":
        if arguments:
            raise RuleError("arguments= can be combined only with the name of a known op; a pointwise rule takes all tensors of the call.")
        return Elementwise(keeps_zero)
    like = _overload(rule)
    own = built_in_rule(str(like.overloadpacket), like)
    if own is None:
        raise RuleError(f"{rule} has no rule in this package that {overload} could follow. Write the rule as a function.")
    names, constants = match_arguments(overload, like, arguments)
    return _Kept(Likeness(own, like, names, constants), keeps_zero)


@dataclass(frozen=True)
class Elementwise:
    """Rule of an elementwise op: the dimensions of all its tensors meet by broadcasting."""

    keeps_zero: bool

    def __call__(self, walk: Walk, node: Node) -> Outcome:
        """Every output has the broadcast shape of the inputs."""
        tensors = [source for source in node.all_input_nodes if is_tensor(source)]
        shapes = output_shapes(node)
        axes = broadcast(walk, node, tensors, shapes[0])
        zero = self.keeps_zero and bool(tensors) and sum_is_zero(walk, axes, shapes[0], tensors)
        return Outcome(outputs=(axes,) * len(shapes), zero=zero)


@dataclass(frozen=True)
class _Kept:
    """A known op's rule; the output counts as zero at dropped positions only if the caller says so."""

    rule: Rule
    keeps_zero: bool

    def __call__(self, walk: Walk, node: Node) -> Outcome:
        outcome = self.rule(walk, node)
        return replace(outcome, zero=outcome.zero and self.keeps_zero)


def _with_cost(rule: Rule, cost_rule: CostRule | None) -> Rule:
    if cost_rule is None:
        return rule

    def with_cost(walk: Walk, node: Node) -> Outcome:
        outcome = rule(walk, node)
        walk.outputs[node] = outcome.outputs  # terms are made of the axes of results, too
        return replace(outcome, macs=tuple(cost_rule(walk, node)), costed=True)

    return with_cost
