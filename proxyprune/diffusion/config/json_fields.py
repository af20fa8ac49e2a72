"""Fields of nested dataclasses from JSON: names and types are checked, and every mistake is collected."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any


def read_fields(kind: type, data: Mapping[str, Any], where: str, problems: list[str], close: Callable[[str], str]) -> dict[str, Any]:
    """Arguments for a dataclass.

    Args:
        kind: The dataclass; fields that are dataclasses themselves are read likewise.
        data: JSON object; what is left out keeps its default.
        where: Dotted place of the object, with a dot at its end, for the messages.
        problems: Takes a sentence for each mistake.
        close: Dotted name that does not exist -> hint at names that do.
    """
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in data.items():
        label = f"{where}{name}"
        if name not in types:
            problems.append(f"there is no setting {label!r}{close(label)}")
            continue
        expected = types[name]
        if dataclasses.is_dataclass(expected) and isinstance(expected, type):
            if isinstance(value, Mapping):
                values[name] = expected(**read_fields(expected, value, f"{label}.", problems, close))
            else:
                problems.append(f"{label} holds settings, found {value!r}")
            continue
        try:
            values[name] = _as(expected, value)
        except TypeError:
            problems.append(f"{label} must be {_kind(expected)}, found {value!r}")
    return values


def _as(expected: Any, value: Any) -> Any:
    """`value` as the type of a field."""
    options = typing.get_args(expected)
    origin = typing.get_origin(expected)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_as(options[0], item) for item in value)
    if type(None) in options:
        return None if value is None else _as(next(option for option in options if option is not type(None)), value)
    if origin is not None:
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise TypeError
    return value


def _kind(expected: Any) -> str:
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    return names.get(expected, str(expected).replace("typing.", "").replace("collections.abc.", ""))
