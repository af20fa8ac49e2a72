"""Intervals of the noise process: where one expert ends and the next begins, stored as SNR so that every sampler agrees.

Interval 0 is the cleanest. A boundary belongs to no timestep: it lies halfway (in dB) between two neighbouring ones, so that rounding
cannot move a timestep across it, and any respaced, shifted or fractional step finds its expert by comparing its own SNR.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxyprune.diffusion.process.noise_schedule import FloatArray, NoiseSchedule
from proxyprune.errors import InputError
from proxyprune.scoring.brief import NoiseInterval

IntArray = NDArray[np.int64]

_FAR_DB = 200.0
"""Stands for an infinite SNR where a finite number is needed."""


@dataclass(frozen=True)
class Interval:
    """One contiguous range of noise levels: low_snr_db <= SNR < high_snr_db.

    Attributes:
        index: Place; 0 is the cleanest.
        count: Number of intervals.
        low_snr_db: At the noisy end; -inf for the last interval.
        high_snr_db: At the clean end; +inf for the first.
        first: First training timestep inside.
        last: Last training timestep inside.
    """

    index: int
    count: int
    low_snr_db: float
    high_snr_db: float
    first: int
    last: int

    @property
    def timesteps(self) -> int:
        """Training timesteps inside."""
        return self.last - self.first + 1

    def reach(self, margin: float, timesteps: int) -> tuple[int, int]:
        """First and last timestep with a margin on both sides.

        Args:
            margin: Share of the interval's own timesteps that is added at each end.
            timesteps: Of the whole process, which is never left.
        """
        beyond = round(margin * self.timesteps)
        return max(0, self.first - beyond), min(timesteps - 1, self.last + beyond)

    def brief(self, snr: FloatArray) -> NoiseInterval:
        """Return the interval for scorers, with finite ends where the process itself ends."""
        low = max(float(snr[self.last]), -_FAR_DB) if not np.isfinite(self.low_snr_db) else self.low_snr_db
        high = min(float(snr[self.first]), _FAR_DB) if not np.isfinite(self.high_snr_db) else self.high_snr_db
        return NoiseInterval(min(low, high - 1e-3), high, self.index, self.count)


@dataclass(frozen=True)
class Intervals:
    """A partition of all noise levels.

    Attributes:
        boundaries_db: SNR between neighbouring intervals, falling; one less than there are intervals.
        method: How they were chosen.
    """

    boundaries_db: tuple[float, ...]
    method: str

    def __post_init__(self) -> None:
        values = self.boundaries_db
        if not all(np.isfinite(values)) or any(a <= b for a, b in itertools.pairwise(values)):
            raise InputError(f"Expected finite boundaries in falling order, found {values}.")

    def __len__(self) -> int:
        return len(self.boundaries_db) + 1

    def interval_of(self, snr: FloatArray | float) -> IntArray:
        """Index of the interval of each noise level, of the shape of `snr`.

        Args:
            snr: Signal-to-noise ratios in dB; infinities belong to the ends.
        """
        rising = -np.asarray(self.boundaries_db, np.float64)
        return np.asarray(np.searchsorted(rising, -np.asarray(snr, np.float64), side="left"), np.int64)

    def over(self, schedule: NoiseSchedule) -> tuple[Interval, ...]:
        """Return the intervals with the timesteps of a training process, from the clean end to the noisy one.

        Args:
            schedule: The process.

        Raises:
            InputError: If an interval holds no timestep of it.
        """
        owner = self.interval_of(schedule.snr_db)
        ends = (np.inf, *self.boundaries_db, -np.inf)
        found = []
        for index in range(len(self)):
            inside = np.flatnonzero(owner == index)
            if not len(inside):
                raise InputError(
                    f"Interval {index} ({ends[index + 1]:.1f} to {ends[index]:.1f} dB) holds no timestep; use fewer intervals."
                )
            found.append(Interval(index, len(self), ends[index + 1], ends[index], int(inside[0]), int(inside[-1])))
        return tuple(found)

    def counts(self, snr: FloatArray) -> tuple[int, ...]:
        """Return the number of a sampler's steps that fall into each interval, [intervals].

        Args:
            snr: Signal-to-noise ratio of each step in dB, [steps].
        """
        return tuple(int(n) for n in np.bincount(self.interval_of(snr), minlength=len(self)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": 1, "boundaries_db": list(self.boundaries_db), "method": self.method}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Intervals:
        """Read what `to_dict` wrote.

        Raises:
            InputError: If the data is of another schema or malformed.
        """
        try:
            if data["schema"] != 1:
                raise InputError(f"Expected intervals with schema 1, found {data['schema']!r}.")
            return cls(tuple(float(value) for value in data["boundaries_db"]), str(data["method"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"These are not intervals ({type(error).__name__}: {error}).") from error

    @classmethod
    def at(cls, cuts: Sequence[int], schedule: NoiseSchedule, method: str) -> Intervals:
        """Boundaries in front of given timesteps, halfway in dB between the neighbours.

        Args:
            cuts: First timestep of every interval but the first, 0 < cut < T, rising.
            schedule: The process that they are timesteps of.
            method: How they were found, for the record.

        Raises:
            InputError: If a cut leaves an interval empty.
        """
        snr = np.clip(schedule.snr_db, -_FAR_DB, _FAR_DB)
        edges = (0, *cuts, len(snr))
        if any(a >= b for a, b in itertools.pairwise(edges)):
            empty = sum(a >= b for a, b in itertools.pairwise(edges))
            raise InputError(
                f"Split by {method!r}, {empty} of {len(cuts) + 1} intervals hold none of the {len(snr)} timesteps; use fewer intervals."
            )
        return cls(tuple(float((snr[cut - 1] + snr[cut]) / 2.0) for cut in cuts), method)


def uniform(schedule: NoiseSchedule, count: int) -> Intervals:
    """As many timesteps in each interval, as far as they divide."""
    total = len(schedule.times)
    return Intervals.at([round(total * k / count) for k in range(1, count)], schedule, "uniform")


def equal_db(schedule: NoiseSchedule, count: int, clip_db: float = 20.0) -> Intervals:
    """Return the same width in clipped dB; without the clip nearly all timesteps of a cosine schedule fall into two intervals."""
    snr = schedule.clipped_db(clip_db)
    top, bottom = float(snr[0]), float(snr[-1])
    levels = [top - (top - bottom) * k / count for k in range(1, count)]
    return Intervals.at([int((snr > level).sum()) for level in levels], schedule, "equal-db")


def dynamic(schedule: NoiseSchedule, count: int, clip_db: float = 20.0) -> Intervals:
    """Least total absolute deviation of clipped dB from each interval's median, found exactly by dynamic programming."""
    return Intervals.at(best_cuts(absolute_deviation(schedule.clipped_db(clip_db)), count), schedule, "dynamic")


def balanced(schedule: NoiseSchedule, count: int, burden: FloatArray) -> Intervals:
    """Split the process so that every interval carries the same burden, as nearly as timesteps divide.

    Args:
        schedule: The process.
        count: Intervals.
        burden: Share of each timestep, [T], summing to 1.

    Raises:
        InputError: If one timestep carries more than an interval's share, so that an interval would be empty.
    """
    reached = np.concatenate([[0.0], np.cumsum(burden)])  # before each timestep
    cuts = []
    for share in (k / count for k in range(1, count)):
        above = int(np.searchsorted(reached, share))
        cuts.append(above if reached[above] - share <= share - reached[above - 1] else above - 1)
    return Intervals.at(cuts, schedule, "complexity")


def absolute_deviation(values: FloatArray) -> FloatArray:
    """Cost of every segment of monotone values: sum of |value - median|; [T + 1, T + 1], inf where there is no segment."""
    total = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    cost = np.full((total + 1, total + 1), np.inf)
    for start in range(total):
        stop = np.arange(start + 1, total + 1)
        middle = (start + stop) // 2
        median = values[middle]
        before = (sums[middle] - sums[start]) - median * (middle - start)
        after = (sums[stop] - sums[middle]) - median * (stop - middle)
        cost[start, start + 1 :] = np.abs(before) + np.abs(after)
    return cost


def squared_deviation(points: FloatArray) -> FloatArray:
    """Cost of every segment of points [T, D]: sum of squared distances from the segment's mean; inf where there is no segment."""
    total = len(points)
    sums = np.concatenate([np.zeros((1, points.shape[1])), np.cumsum(points, axis=0)])
    squares = np.concatenate([[0.0], np.cumsum((points**2).sum(axis=1))])
    cost = np.full((total + 1, total + 1), np.inf)
    for start in range(total):
        stop = np.arange(start + 1, total + 1)
        spread = ((sums[stop] - sums[start]) ** 2).sum(axis=1) / (stop - start)
        cost[start, start + 1 :] = np.maximum(squares[stop] - squares[start] - spread, 0.0)
    return cost


def best_cuts(cost: FloatArray, count: int) -> list[int]:
    """Cuts of the cheapest partition of [0, T) into `count` segments; exact, by dynamic programming over the number of segments.

    Args:
        cost: Cost of segment [i, j) at [i, j].
        count: Segments.

    Raises:
        InputError: If there are fewer places than segments.
    """
    total = len(cost) - 1
    if count > total:
        raise InputError(f"{total} timesteps cannot be split into {count} intervals.")
    best, back = cost[0].copy(), []
    for _ in range(count - 1):
        candidates = best[:, None] + cost
        back.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    cuts, stop = [], total
    for choices in reversed(back):
        stop = int(choices[stop])
        cuts.append(stop)
    return cuts[::-1]


def measured(
    schedule: NoiseSchedule, count: int, edges: Sequence[int], gradients: FloatArray, losses: FloatArray, weight: float
) -> Intervals:
    """Timesteps whose training pulls the weights the same way, and that are equally hard, stay together.

    The cost of a segment of bins is the squared deviation of the gradients' directions from their mean (so n minus the sum of pairwise
    cosine similarities over n: gradient affinity), plus `weight` times that of the standardised log-loss. Exact over bins.

    Args:
        schedule: The process.
        count: Intervals.
        edges: First timestep of each bin, and the number of timesteps at the end; [bins + 1].
        gradients: Gradient of the base model's loss in each bin (or a random projection of it), [bins, D].
        losses: Loss in each bin, [bins].
        weight: Weight of the loss.
    """
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    directions = gradients / np.maximum(norms, np.finfo(np.float64).tiny)
    hardness = np.log(np.maximum(losses, np.finfo(np.float64).tiny))
    hardness = (hardness - hardness.mean()) / max(float(hardness.std()), 1e-12)
    points = np.concatenate([directions, np.sqrt(weight) * hardness[:, None]], axis=1)
    return Intervals.at([edges[cut] for cut in best_cuts(squared_deviation(points), count)], schedule, "measured")


def bins_of(members: Sequence[Interval], count: int) -> list[tuple[int, int, int]]:
    """(interval, first, last timestep) of about `count` bins: every interval gets its share, and at least one."""
    total = sum(member.timesteps for member in members)
    found = []
    for member in members:
        parts = min(member.timesteps, max(1, round(count * member.timesteps / total)))
        edges = [member.first + member.timesteps * part // parts for part in range(parts + 1)]
        found += [(member.index, first, stop - 1) for first, stop in itertools.pairwise(edges)]
    return found
