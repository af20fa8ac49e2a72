"""Calls of one op that a rule reads as calls of another: a fused or renamed op follows the rule of the op that it behaves like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.fx import Node

from proxyprune.coupling.outcome import Outcome, Size
from proxyprune.coupling.rules.walk import Rule, Walk
from proxyprune.errors import RuleError
from proxyprune.tracing.nodes import arguments, position_of


class StandIn:
    """A node with the target and the arguments of another op.

    It is equal to its node, so that a rule may put it into sets of nodes; everything else is read from the node.
    """

    def __init__(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.node = node
        self.target = target
        self.args = args
        self.kwargs = kwargs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def __hash__(self) -> int:
        return hash(self.node)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.node


@dataclass(frozen=True)
class Likeness:
    """A rule that treats one op as another.

    Attributes:
        rule: Rule of the op that is imitated.
        target: Overload of that op.
        names: Its argument -> the argument of the actual op that takes this place.
        constants: Its argument -> the value that it has in every call.
    """

    rule: Rule
    target: Any
    names: Mapping[str, str]
    constants: Mapping[str, Any]

    def __call__(self, walk: Walk, node: Node) -> Outcome:
        """Apply the imitated op's rule; sizes that it predicts are found again among the actual op's arguments."""
        values = arguments(node)
        taken = {own: values[name] for own, name in self.names.items() if name in values} | dict(self.constants)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in self.target._schema.arguments:
            value = taken.get(argument.name, argument.default_value if argument.has_default_value() else None)
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        outcome = self.rule(walk, cast("Node", StandIn(node, self.target, tuple(args), kwargs)))
        return replace(outcome, sizes=self._own_sizes(node, outcome.sizes))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the overload's name, because torch's overloads cannot be sent to another process."""
        namespace, _, name = self.target._schema.name.partition("::")
        return {**vars(self), "target": (namespace, name, self.target._schema.overload_name or "default")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        namespace, name, overload = state["target"]
        target = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        for key, value in {**state, "target": target}.items():
            object.__setattr__(self, key, value)  # the dataclass is frozen

    def _own_sizes(self, node: Node, sizes: Mapping[int | str, Any]) -> dict[int | str, Size | tuple[Size, ...]]:
        schema = self.target._schema.arguments
        named = {schema[key].name if isinstance(key, int) else key: size for key, size in sizes.items()}
        return {position_of(node, self.names[name]): size for name, size in named.items() if name in self.names}


def match_arguments(op: Any, like: Any, given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Pair the arguments of an op with those of the op that it behaves like.

    Arguments of equal name belong together; those that are left are paired in order, by type.

    Args:
        op: The actual overload.
        like: The overload that it imitates.
        given: Argument of `like` -> name of an argument of `op`, or a constant that is not a string.

    Returns:
        Argument of `like` -> argument of `op`, and argument of `like` -> constant.

    Raises:
        RuleError: If a name in `given` is no argument, or if an argument that `like` needs has no partner.
    """
    wanted, own = {a.name: a for a in like._schema.arguments}, {a.name: a for a in op._schema.arguments}
    names = {name: value for name, value in given.items() if isinstance(value, str)}
    constants = {name: value for name, value in given.items() if not isinstance(value, str)}
    unknown = [name for name in given if name not in wanted] + [name for name in names.values() if name not in own]
    if unknown:
        takes = "; ".join(f"{which._schema.name} takes {', '.join(known)}" for which, known in ((like, wanted), (op, own)))
        raise RuleError(f"arguments= names {', '.join(unknown)}, but {takes}.")
    names |= {name: name for name in wanted if name in own and name not in given and name not in names.values()}
    left = [name for name in own if name not in names.values()]
    for name, argument in wanted.items():
        if name in names or name in constants:
            continue
        partner = next((other for other in left if _kind(own[other]) == _kind(argument)), None)
        if partner is not None:
            names[name] = partner
            left.remove(partner)
        elif not argument.has_default_value() and not _is_optional(argument):
            raise RuleError(
                f"{op._schema.name} has no argument that could be '{name}' of {like._schema.name}. "
                f"Pass arguments={{'{name}': ...}} with the name of an argument, or with the constant that it always is."
            )
    return names, constants


def _kind(argument: Any) -> str:
    return str(argument.type).replace("SymInt", "int").removeprefix("Optional[").removesuffix("]")


def _is_optional(argument: Any) -> bool:
    return str(argument.type).startswith("Optional[")
