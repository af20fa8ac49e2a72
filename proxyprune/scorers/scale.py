"""From measurements in any unit to importances in [0, 1]."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

DECIMALS = 6
"""Scores are rounded, so that the last bits of a float sum, which differ between machines, do not reach a ranking."""


def half_saturation(values: Mapping[str, float]) -> dict[str, float]:
    """Map measurements to [0, 1) by v / (v + median): the median block gets 0.5, whatever the unit.

    Strictly increasing up to rounding; equal values stay equal, so where nothing is known nothing is invented. Values many times the
    median crowd together near 1. When there are negative values, all are shifted so that the smallest becomes 0. An infinite value gets 1.

    Args:
        values: Measurement by block id; larger means keep; not NaN and not -inf.

    Returns:
        Importance by block id, in the same order.
    """
    finite = [value for value in values.values() if math.isfinite(value)]
    shift = -min(finite, default=0.0) if min(finite, default=0.0) < 0 else 0.0
    positive = [value + shift for value in finite if value + shift > 0]
    half = statistics.median([value + shift for value in finite]) if finite else 0.0
    if half == 0.0:  # most blocks do nothing at all; then the middle of those that do is the yardstick
        half = statistics.median(positive) if positive else 1.0
    return {key: round((value + shift) / (value + shift + half), DECIMALS) if math.isfinite(value) else 1.0 for key, value in values.items()}


def significant(value: float, digits: int = 6) -> float:
    """Round to significant digits, for channel scores, which have no fixed range."""
    return float(f"{value:.{digits - 1}e}")
