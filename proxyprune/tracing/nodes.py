"""Facts about the nodes of a traced graph: op names, arguments by name, output shapes, aliases."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_READS_OF_PARTS = frozenset({"aten.select", "aten.slice", "aten.unbind", "aten.index"})


def op_name(node: Node) -> str:
    """'aten.linear' for aten.linear.default."""
    return _name_of(node.target)


@functools.cache
def _name_of(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    packet = getattr(target, "overloadpacket", None)
    return str(packet) if packet is not None else str(getattr(target, "__name__", target))


def overload(node: Node) -> str:
    """'int' for aten.split.int."""
    return str(getattr(node.target, "_overloadname", ""))


def _schema_of(node: Node) -> torch.FunctionSchema:
    schema = getattr(node.target, "_schema", None)
    if not isinstance(schema, torch.FunctionSchema):
        raise TypeError(f"{op_name(node)} has no schema, so its arguments have no names.")
    return schema


def arguments(node: Node) -> dict[str, Any]:
    """Return the call's arguments by schema name, defaults filled in."""
    schema = _schema_of(node)
    values = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)})
    values.update(node.kwargs)
    return values


def tensor_argument(node: Node, key: int | str) -> Node:
    """Return a tensor that an op takes, by position or by name.

    Raises:
        TypeError: If the call has no tensor there; a rule asks only for what the op's schema demands.
    """
    value = node.args[key] if isinstance(key, int) else arguments(node)[key]
    if not isinstance(value, Node):
        raise TypeError(f"{op_name(node)} takes {value!r} as argument {key!r}, where a tensor was expected.")
    return value


def integers(value: Any) -> tuple[int, ...]:
    """Return an integer argument, or a list of them, as a tuple."""
    return tuple(int(item) for item in (value if isinstance(value, list | tuple) else (value,)))


def position_of(node: Node, name: str) -> int | str:
    """Return the place of an argument in this call: its index when it was passed by position, else its name."""
    for index, argument in enumerate(_schema_of(node).arguments):
        if argument.name == name:
            return index if index < len(node.args) else name
    raise KeyError(name)


def writes_to(node: Node) -> Node | None:
    """Return the tensor that an in-place op overwrites."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not node.args:
        return None
    first = node.args[0]
    return first if isinstance(first, Node) else None


def output_shapes(node: Node) -> list[tuple[int, ...]]:
    """Shapes of all output tensors of a node; () for an output that is no tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [tuple(int(size) for size in item.shape) if isinstance(item, Tensor) else () for item in values] or [()]


def is_tensor(node: Node) -> bool:
    """Return True for a node whose value is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def is_unread(node: Node) -> bool:
    """Return True for an op that reads a part of a tensor, if no other op uses that part."""
    return not node.users and op_name(node) in _READS_OF_PARTS


def aliases_of(node: Node) -> Iterator[Node]:
    """Yield a tensor and every view that shares its storage, from the tensor that the views were made of."""
    root = node
    while (base := _viewed(root)) is not None:
        root = base
    pending = [root]
    while pending:
        current = pending.pop()
        yield current
        pending += [user for user in current.users if _viewed(user) is current]


def _viewed(node: Node) -> Node | None:
    """Return the tensor that an op returns a view of; None for an op that makes a new tensor."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source = node.args[0]
        return source if isinstance(source, Node) and _viewed(source) is not None else None
    schema = getattr(node.target, "_schema", None)
    aliased = schema is not None and any(result.alias_info is not None for result in schema.returns)
    first = node.args[0] if node.args else None
    return first if aliased and isinstance(first, Node) else None
