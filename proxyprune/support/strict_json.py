"""JSON by its standard: without NaN and infinities, and with every key of an object once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from proxyprune.support.checks import listed

_LONGEST_KEY = 40


def loads(text: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: If the text is not JSON, has a NaN or an infinity, or repeats a key of an object.
        RecursionError: If the text is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_reject_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{listed((_short(key) for key in repeated), shown=8)} more than once")
    return found


def _short(key: str) -> str:
    text = json.dumps(key)
    return text if len(text) <= _LONGEST_KEY else f"{text[:_LONGEST_KEY]}..."


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
