"""Keyword arguments described by typed dictionaries: checked by name, and split by kind.

A public function takes `**keywords: Unpack[Kind]`, so type checkers and editors see every keyword with its type. At run time Python
accepts any name there; `check_keywords` restores the error for a name that the function does not have.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

_Kind = TypeVar("_Kind")


def check_keywords(function: Callable[..., Any], given: Iterable[str], kind: type) -> None:
    """Raise for the first keyword argument that a function does not have.

    Args:
        function: The function, whose named parameters count as well when the closest name is looked up.
        given: Names in its `**keywords`.
        kind: The typed dictionary that describes them.

    Raises:
        TypeError: As Python raises it; with the closest name, if there is one.
    """
    known = kind.__annotations__
    for name in given:
        if name in known:
            continue
        named = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        close = difflib.get_close_matches(name, [*known, *named], n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {name!r}{hint}")


def picked(kind: type[_Kind], keywords: Mapping[str, object]) -> _Kind:
    """Return the keywords that a typed dictionary describes, without the others."""
    return cast("_Kind", {name: value for name, value in keywords.items() if name in kind.__annotations__})
