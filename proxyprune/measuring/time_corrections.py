"""Correct a limit of predicted time until the measured time is on the target. Numbers in, numbers out: needs no network and no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CORRECTIONS = 3
"""Most corrections of a limit."""

TOLERANCE = 0.01
"""Share of the unpruned network's time by which a median may lie above the target: what such measurements vary by."""

UNUSED = 0.02
"""Share of the unpruned network's time that a plan may leave unused before the limit is corrected upwards."""

PRECISION = 0.01
"""Half width of a confidence interval that is narrow enough to judge by."""

_AIM = (TOLERANCE - UNUSED) / 2
"""Distance from the target at which corrections aim: the middle of what is accepted."""

_STEEPER = 2.0
"""Most by which a slope between two measurements may differ from that of a constant factor; noise decides beyond it."""


@dataclass(frozen=True)
class Trial:
    """One plan: its limit, its predicted time and its measured time.

    Attributes:
        limit: The most nanoseconds that the plan was allowed to take by prediction.
        predicted: The nanoseconds that it takes by prediction, at most the limit.
        measured: Measured share of the unpruned network's time.
        target: The most that the share should be.
    """

    limit: int
    predicted: int
    measured: float
    target: float

    @property
    def excess(self) -> float:
        """Measured share above the target; negative if time is left unused."""
        return self.measured - self.target

    @property
    def met(self) -> bool:
        """True if the target is met, within the tolerance."""
        return self.excess <= TOLERANCE

    @property
    def near(self) -> bool:
        """True if the target is met and little time is left unused."""
        return self.met and self.excess >= -UNUSED

    @property
    def slope(self) -> float:
        """Change of the measured share for a nanosecond of prediction, if predictions are off by a constant factor."""
        return self.measured / max(1, self.predicted)


def is_precise(interval: tuple[float, float], target: float) -> bool:
    """Return True if a confidence interval of the measured share is narrow enough, or lies outside of what is accepted.

    Args:
        interval: Least and greatest share.
        target: The most that the share should be.
    """
    low, high = interval
    return high - low <= 2 * PRECISION or low > target + TOLERANCE or high < target - UNUSED


def corrected(attempt: Callable[[int | None], Trial | None]) -> list[Trial]:
    """Attempt plans until one is near the target, with at most three corrections of the limit.

    Args:
        attempt: Plans and measures: limit in nanoseconds, or None for the target itself, -> trial; None if no plan has this limit.

    Returns:
        The trials, in order; empty if the first attempt gave none.
    """
    trials: list[Trial] = []
    limit: int | None = None
    for _ in range(CORRECTIONS + 1):
        trial = attempt(limit)
        if trial is None:
            break
        trials.append(trial)
        limit = next_limit(trials)
        if limit is None:
            break
    return trials


def best_of(trials: Sequence[Trial]) -> int:
    """Return the index of the slowest trial that meets its target; of the fastest one if none does."""
    met = [index for index, trial in enumerate(trials) if trial.met]
    if met:
        return max(met, key=lambda index: trials[index].excess)
    return min(range(len(trials)), key=lambda index: trials[index].excess)


def next_limit(trials: Sequence[Trial]) -> int | None:
    """Return the limit to try next; None if a trial is near the target, or if no other plan can be expected to be.

    The next limit lies on the line through the trial that is nearest to the target and its counterpart on the other side. With one
    trial, or with trials on one side, it lies on the line of a constant factor, or through the two nearest. It stays between the
    fastest trial that was too slow and the slowest one that was fast enough.
    """
    if any(trial.near for trial in trials):
        return None
    by_distance = sorted(trials, key=lambda trial: abs(trial.excess - _AIM))
    slow, fast = ([trial for trial in by_distance if trial.met is met] for met in (False, True))
    nearest = by_distance[0]
    other = slow[0] if slow and nearest.met else fast[0] if fast and not nearest.met else by_distance[1] if len(trials) > 1 else nearest
    wanted = round(nearest.predicted + (_AIM - nearest.excess) / _slope(nearest, other))
    least = max((trial.limit for trial in fast), default=0)
    most = min((trial.predicted for trial in slow), default=None)
    if most is None:
        return wanted if wanted > least else None
    if least < wanted < most:
        return wanted
    if not fast:  # a slower plan may have measured faster; the fastest by prediction is followed
        first = min(slow, key=lambda trial: trial.predicted)
        return max(1, round(first.predicted + (_AIM - first.excess) / first.slope))
    middle = (least + most) // 2
    return middle if least < middle < most else None


def _slope(nearest: Trial, other: Trial) -> float:
    """Return the slope between two trials, kept within a factor of that of a constant factor."""
    run = nearest.predicted - other.predicted
    found = (nearest.excess - other.excess) / run if run else nearest.slope
    return min(max(found, nearest.slope / _STEEPER), nearest.slope * _STEEPER)
