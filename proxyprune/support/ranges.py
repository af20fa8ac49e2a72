"""Sorted integers as text: "0-3,7"."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_RANGES = re.compile(r"\d{1,10}(-\d{1,10})?(,\d{1,10}(-\d{1,10})?)*")


def to_ranges(indices: Sequence[int]) -> str:
    """Ascending indices as text: (0, 1, 2, 5) -> "0-2,5"."""
    if not indices:
        return ""
    values = np.asarray(indices, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(values) != 1)
    starts = values[np.concatenate(([0], breaks + 1))].tolist()
    ends = values[np.concatenate((breaks, [len(values) - 1]))].tolist()
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def from_ranges(text: object, *, limit: int) -> tuple[int, ...]:
    """Return the indices that `to_ranges` wrote.

    Args:
        text: Ranges such as "0-2,5".
        limit: Indices must be smaller than this.

    Raises:
        ValueError: If the text is malformed, not ascending, empty, or goes beyond the limit.
    """
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        raise ValueError(f"expected indices as ranges such as '0-15,18', found {str(text)[:80]!r}")
    kept: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if end < start or (kept and start <= kept[-1]):
            raise ValueError(f"indices are not ascending at '{part}'")
        if end >= limit:
            raise ValueError(f"index {end} is out of range for {limit} channels")
        kept.extend(range(start, end + 1))
    return tuple(kept)
