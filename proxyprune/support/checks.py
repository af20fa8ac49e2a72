"""Checks of single values, and long lists cut short for a message."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeGuard


def is_number(value: object, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> TypeGuard[int | float]:
    """Return True for a finite int or float in [low, high]; True and False are no numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_count(value: object, least: int = 0) -> TypeGuard[int]:
    """Return True for a whole number from `least` up; True and False are no numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def listed(items: Iterable[str], shown: int = 5, separator: str = ", ") -> str:
    """Join the first items and count the others: "a, b and 3 more".

    Args:
        items: Names or sentences.
        shown: Number of items that are written out.
        separator: Stands between items; after "; " the count is an item of its own: "a; b; and 3 more".
    """
    items = list(items)
    more = f"{' ' if separator == ', ' else separator}and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more
