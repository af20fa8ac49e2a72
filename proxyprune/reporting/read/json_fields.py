"""Checked access to JSON that somebody else may have written: what is missing has a default, what is malformed is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from proxyprune.errors import ResultFileError
from proxyprune.support.checks import is_count, is_number
from proxyprune.support.strict_json import loads

_LARGEST = 2**63


@dataclass(frozen=True)
class Fields:
    """One JSON object, and where it stands.

    Attributes:
        data: The object.
        where: For messages: file, and place in it.
    """

    data: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> Fields:
        """Return the value if it is an object.

        Raises:
            ResultFileError: If it is something else.
        """
        if not isinstance(value, Mapping):
            fail(where, f"expected an object, found {type(value).__name__}")
        return cls(value, where)

    def has(self, *names: str) -> bool:
        """Return True if all these keys are there."""
        return all(name in self.data for name in names)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string; without a default it must be there."""
        value = self.data.get(name, default)
        return value if isinstance(value, str) else self._wrong(name, "a string", value)

    def optional_text(self, name: str) -> str | None:
        """Return a string or nothing."""
        return None if self.data.get(name) is None else self.text(name)

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number from 0 up; without a default it must be there."""
        value: int = self.data.get(name, default)
        return value if is_stored_count(value) else self._wrong(name, "a whole number from 0 up", value)

    def optional_count(self, name: str) -> int | None:
        """Return a whole number from 0 up, or nothing."""
        return None if self.data.get(name) is None else self.count(name)

    def number(self, name: str) -> float | None:
        """Return a finite number, or nothing."""
        value = self.data.get(name)
        return None if value is None else as_number(value, f"{self.where}, '{name}'")

    def flag(self, name: str) -> bool:
        """Return a truth value; False when it is missing."""
        value = self.data.get(name, False)
        return value if isinstance(value, bool) else self._wrong(name, "true or false", value)

    def fields(self, name: str) -> Fields:
        """Return an object inside; an empty one when it is missing."""
        value = self.data.get(name)
        return Fields.of({} if value is None else value, f"{self.where}, '{name}'")

    def objects(self, name: str) -> Iterator[Fields]:
        """Yield a list of objects; an empty one when it is missing."""
        for index, value in enumerate(self.items(name)):
            yield Fields.of(value, f"{self.where}, '{name}'[{index}]")

    def items(self, name: str) -> tuple[Any, ...]:
        """Return a list; an empty one when it is missing."""
        value = self.data.get(name)
        if value is None:
            return ()
        return tuple(value) if isinstance(value, list) else self._wrong(name, "a list", value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings; an empty one when it is missing."""
        values = self.items(name)
        return values if all(isinstance(value, str) for value in values) else self._wrong(name, "a list of strings", values)

    def text_map(self, name: str) -> dict[str, str]:
        """Strings by name; empty when it is missing."""
        found = self.fields(name).data
        return {k: v if isinstance(v, str) else self._wrong(name, "strings by name", v) for k, v in found.items()}

    def pairs(self, name: str) -> dict[str, tuple[int, int]]:
        """Two counts by name, before and after; empty when it is missing."""
        return {key: self.pair_of(value, name) for key, value in self.fields(name).data.items()}

    def pair_of(self, value: object, name: str) -> tuple[int, int]:
        """One pair of counts, before and after."""
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(is_stored_count(part) for part in value):
            self._wrong(name, "[before, after]", value)
        return (value[0], value[1])

    def _wrong(self, name: str, expected: str, value: object) -> NoReturn:
        fail(self.where, f"'{name}' must be {expected}, " + (f"found {str(value)[:60]!r}" if name in self.data else "but is missing"))


def parsed(content: bytes, where: str) -> Any:
    """JSON, strictly: UTF-8, and no NaN.

    Raises:
        ResultFileError: If it does not parse.
    """
    try:
        return loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        fail(where, f"it is not JSON ({error})")


def is_stored_count(value: object) -> TypeGuard[int]:
    """Return True for a whole number from 0 up that fits into 63 bits."""
    return is_count(value) and value < _LARGEST


def as_number(value: object, where: str) -> float:
    """Return a finite number.

    Raises:
        ResultFileError: If it is something else.
    """
    if not is_number(value, -1e300, 1e300):
        fail(where, f"expected a finite number, found {str(value)[:60]!r}")
    return float(value)


def fail(where: str, problem: str) -> NoReturn:
    """Raise the one error of this package.

    Raises:
        ResultFileError: Always.
    """
    raise ResultFileError(f"{where} cannot be shown: {problem}. Make it again, or restore the original file.")
