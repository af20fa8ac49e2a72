"""Predicted time of a plan, and what its network was measured to take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyprune.support.checks import is_count
from proxyprune.support.dataclass_json import to_plain


@dataclass(frozen=True)
class MeasuredTime:
    """The pruned network timed in turns with the unpruned one.

    Attributes:
        before: Seconds of the unpruned network: lower quartile, median, upper quartile.
        after: Seconds of the pruned one.
        ratio: After / before, of runs that followed each other.
        target_ratio: The most that the ratio should be, or None without a budget of time.
        met: Whether the median of the ratio is within the target and what such a measurement varies by; None without a target.
        settings: How both were timed: batch, threads, dtype, repeats, compiled; plain JSON values.
        corrections: How often the budget was corrected by a measurement.
        first_predicted: Ratio that was predicted before any correction.
        first_measured: Ratio that the first plan's network was measured to have.
        interval: 95 % confidence interval of the median of the ratio, or None in results of earlier versions.
        turns: Runs of each network, or None in results of earlier versions.
    """

    before: tuple[float, float, float]
    after: tuple[float, float, float]
    ratio: tuple[float, float, float]
    target_ratio: float | None = None
    met: bool | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    corrections: int = 0
    first_predicted: float | None = None
    first_measured: float | None = None
    interval: tuple[float, float] | None = None
    turns: int | None = None

    @property
    def sentence(self) -> str:
        """Time before and after with quartiles, for the reader."""
        before, after = (
            " ".join((f"{1000 * values[1]:.2f} ms", f"({1000 * values[0]:.2f} to {1000 * values[2]:.2f})"))
            for values in (self.before, self.after)
        )
        return (
            f"One run takes {before} before and {after} after: {self.ratio[1]:.1%} of the time ({self.ratio[0]:.1%} to {self.ratio[2]:.1%})"
        )


@dataclass(frozen=True)
class PlannedTime:
    """Time of a plan, predicted from the cost table of one machine.

    Attributes:
        base_nanoseconds: Of the unpruned network.
        target_nanoseconds: The most that the plan may take by prediction, or None without a budget of time.
        nanoseconds: Of the pruned network.
        settings: What was timed: processor, device, threads, dtype, batch; plain JSON values.
        measured: What the pruned network was measured to take, or None.
    """

    base_nanoseconds: int
    target_nanoseconds: int | None
    nanoseconds: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: MeasuredTime | None = None

    @property
    def ratio(self) -> float:
        """Predicted time as a share of the unpruned network's."""
        return self.nanoseconds / max(1, self.base_nanoseconds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_plain(self)

    @property
    def problem(self) -> str | None:
        """The error in the values, or None."""
        counts = (self.base_nanoseconds, self.nanoseconds, *(() if self.target_nanoseconds is None else (self.target_nanoseconds,)))
        if not all(is_count(value) for value in counts):
            return f"nanoseconds must be whole numbers, found {', '.join(map(str, counts))}"
        if self.target_nanoseconds is not None and not self.nanoseconds <= self.target_nanoseconds:
            return f"expected nanoseconds <= target_nanoseconds, found {self.nanoseconds}, {self.target_nanoseconds}"
        if self.measured is not None and not all(
            math.isfinite(value) for values in (self.measured.before, self.measured.after, self.measured.ratio) for value in values
        ):
            return "measured times must be finite"
        return None
