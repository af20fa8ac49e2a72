"""From measurements in any unit to importances in [0, 1]."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

DECIMALS = 6
"""Scores are rounded, so that the last bits of a float sum, which differ between machines, do not reach a ranking."""

BELOW_ZERO = 0.1
"""Share of the range for negative measurements, when there are any."""

UNKNOWN = 0.5
"""Score of a block about which nothing was measured: that of the median block."""


def half_saturation(values: Mapping[str, float | None]) -> dict[str, float]:
    """Map measurements to [0, 1) by v / (v + median): the median block gets 0.5, whatever the unit.

    Strictly increasing up to rounding; equal values stay equal, so where nothing is known nothing is invented. Values many times the
    median crowd together near 1. When some are negative (the loss falls without the block), these share [0, 0.1) and the others the rest.

    Args:
        values: Measurement by block id; larger means keep. Infinity becomes 1; None (not measured) becomes 0.5.

    Returns:
        Importance by block id, in the same order.
    """
    finite = [value for value in values.values() if value is not None and math.isfinite(value)]
    half = _half(sorted(map(abs, finite)))
    floor = BELOW_ZERO if min(finite, default=0.0) < 0.0 else 0.0
    return {key: round(_scaled(value, half, floor), DECIMALS) for key, value in values.items()}


def significant(value: float, digits: int = 6) -> float:
    """Round to significant digits, for numbers that have no fixed range."""
    return float(f"{value:.{digits - 1}e}")


def _half(ordered: list[float]) -> float:
    """Return the median; where most blocks do nothing at all, the median of those that do; 0 when none does."""
    positive = [value for value in ordered if value > 0.0]
    median = statistics.median(ordered) if ordered else 0.0
    return median if median > 0.0 or not positive else statistics.median(positive)


def _scaled(value: float | None, half: float, floor: float) -> float:
    if value == math.inf:
        return 1.0
    if value is None or half == 0.0:
        return UNKNOWN
    if value <= 0.0:
        return floor / (1.0 - value / half)
    return floor + (1.0 - floor) / (1.0 + half / value)
