"""Dataclasses as plain JSON values, and back: every name and type is checked, and every mistake is reported at once.

A dataclass needs `to_dict` and `from_dict` of its own only where its file differs from its fields; where it has them, they are used for
fields that hold such a value.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from proxyprune.support.checks import is_number, listed

T = TypeVar("T")

_NAMES: Mapping[Any, str] = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    tuple: "a list",
}
_LONGEST_VALUE = 80


def to_plain(record: Any, *, omit: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as plain JSON values in the order of the class.

    Args:
        record: An instance of a dataclass. Tuples inside become lists, mappings dicts, and dataclasses what their `to_dict` returns, or
            likewise their fields.
        omit: Names of fields to leave out.
    """
    return {entry.name: _plain(getattr(record, entry.name)) for entry in dataclasses.fields(record) if entry.name not in omit}


def from_plain(
    kind: type[T],
    data: object,
    malformed: Callable[[list[str]], Exception] = lambda problems: ValueError(listed(problems, separator="; ")),
    *,
    unknown: Callable[[str], str] | None = None,
) -> T:
    """Return a dataclass from plain JSON values: the inverse of `to_plain`.

    A field with a default may be missing. A whole number is accepted where the class has a float, and becomes one.

    Args:
        kind: The dataclass.
        data: Values by field name.
        malformed: Makes the error from all mistakes, each of which names its field: "sizes[2] must be a number, found 'x'".
        unknown: Makes the sentence about a key that is no field, from its dotted name. Without it such keys are ignored: files hold
            derived values, and a later version may add some.

    Raises:
        Exception: Whatever `malformed` makes (a ValueError by default), if a field is missing, unknown or of another type.
    """
    reader = _Reader(unknown)
    values = reader.fields(kind, data, "")
    if reader.problems:
        raise malformed(reader.problems)
    return kind(**values)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return value.to_dict() if hasattr(value, "to_dict") else to_plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class _Reader:
    """Reads values by the type of their field.

    Attributes:
        problems: A sentence for each mistake so far.
    """

    def __init__(self, unknown: Callable[[str], str] | None) -> None:
        self.problems: list[str] = []
        self._unknown = unknown

    def fields(self, kind: type, data: object, prefix: str) -> dict[str, Any]:
        """Return the arguments of a dataclass.

        Args:
            kind: The dataclass.
            data: Values by field name.
            prefix: Dotted place of the object, with a dot at its end.
        """
        if not isinstance(data, Mapping):
            self._wrong(prefix.rstrip(".") or "the content", "an object", data)
            return {}
        expected = _field_types(kind)
        if self._unknown is not None:
            self.problems += [self._unknown(f"{prefix}{name}") for name in data if name not in expected]
        self.problems += [f"{prefix}{name} is missing" for name in _required(kind) if name not in data]
        return {name: self.value(expected[name], data[name], f"{prefix}{name}") for name in expected if name in data}

    def value(self, expected: Any, value: Any, place: str) -> Any:
        """Return a value as the type of its field; a mistake is recorded, and the result then means nothing."""
        origin = typing.get_origin(expected) or expected
        if expected is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return self._one_of(typing.get_args(expected), value, place)
        if dataclasses.is_dataclass(origin) and isinstance(origin, type):
            return self._record(origin, value, place)
        if origin is tuple:
            return self._items(typing.get_args(expected), value, place)
        if issubclass(origin, Mapping):
            return self._entries(typing.get_args(expected), value, place)
        if expected is float and type(value) is int and is_number(value):
            return float(value)
        if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
            self._wrong(place, _described(expected), value)
        return value

    def _record(self, kind: type, value: Any, place: str) -> Any:
        if hasattr(kind, "from_dict"):
            return kind.from_dict(value)
        before = len(self.problems)
        values = self.fields(kind, value, f"{place}.")
        return kind(**values) if len(self.problems) == before else None

    def _one_of(self, options: tuple[Any, ...], value: Any, place: str) -> Any:
        if type(value) in options:
            return value
        others = [option for option in options if option is not type(None)]
        if len(others) == 1 and not isinstance(others[0], type):  # the mistake inside has a place of its own
            return self.value(others[0], value, place)
        for option in others:
            trial = _Reader(self._unknown)
            found = trial.value(option, value, place)
            if not trial.problems:
                return found
        self._wrong(place, " or ".join(map(_described, options)), value)
        return None

    def _items(self, expected: tuple[Any, ...], value: Any, place: str) -> Any:
        if not isinstance(value, list | tuple):
            self._wrong(place, "a list", value)
            return ()
        if expected[-1] is not Ellipsis:
            if len(value) != len(expected):
                self._wrong(place, f"a list of {len(expected)}", value)
                return ()
            return tuple(self.value(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(expected, value, strict=True)))
        if all(type(item) is expected[0] for item in value):  # fast for a hundred thousand scores
            return tuple(value)
        return tuple(self.value(expected[0], item, f"{place}[{index}]") for index, item in enumerate(value))

    def _entries(self, expected: tuple[Any, ...], value: Any, place: str) -> Any:
        if not isinstance(value, Mapping):
            self._wrong(place, "an object", value)
            return {}
        return {str(key): self.value(expected[1], item, f"{place}.{key}") for key, item in value.items()}

    def _wrong(self, place: str, expected: str, value: Any) -> None:
        found = repr(value)
        shown = found if len(found) <= _LONGEST_VALUE else f"{found[:_LONGEST_VALUE]}…"
        self.problems.append(f"{place} must be {expected}, found {shown}")


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind) if entry.init}


@functools.cache
def _required(kind: type) -> tuple[str, ...]:
    missing = dataclasses.MISSING
    entries = (entry for entry in dataclasses.fields(kind) if entry.init)
    return tuple(entry.name for entry in entries if entry.default is missing and entry.default_factory is missing)


def _described(expected: Any) -> str:
    origin = typing.get_origin(expected) or expected
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, typing.get_args(expected)))
    return _NAMES.get(origin, "an object")
