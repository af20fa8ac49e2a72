"""What is left of a cut's damage when an expert has been trained, read off trials that are far shorter.

Damage, the log ratio of the cut network's loss to the whole one's after the same training, falls as a power of the training's length,
faster in some intervals than in others. So the order of intervals after a few steps need not be their order when it counts. One
model is fitted to all trials of a run, and says what each size costs in each interval after as many steps as an expert will get.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from proxyprune.diffusion.budgets import Option
from proxyprune.diffusion.schedule import FloatArray

PARTS = 40
"""Sizes that a measured allocation chooses from are multiples of 1 / PARTS of the base."""
FLOOR = 0.01
"""Damage below this, one percent of the loss, is not told from none, however well the model fits."""
_MISFIT = 0.3  # relative error of the model where damage is large
_PASSES = 5  # between the fit and what it says about the noise of each interval
_SPREADS = {"level": 0.5, "exponent": 0.25}  # of intervals about their mean: log damage at the end of a trial, power of its length
_MEANS = {"level": (-3.0, 2.0), "exponent": (0.5, 0.2), "bend": (1.2, 0.1)}  # what is expected before there is a trial, and how firmly


@dataclass(frozen=True)
class TriedSize:
    """A cut that was tried in an interval.

    Attributes:
        fraction: Of the base's MACs, as planned.
        macs: Exact MACs.
        damages: Log ratio of its loss to the whole network's, after each length of the trial.
    """

    fraction: float
    macs: int
    damages: tuple[float, ...]


@dataclass(frozen=True)
class Recovery:
    """Damage of a cut to a fraction f of the MACs after n steps: level (1 / f - 1) ** bend n ** -exponent.

    Attributes:
        levels: For each interval, what a cut to a half costs after one step.
        exponents: For each interval, how fast damage falls.
        bend: How much more the last channels matter than the first.
    """

    levels: tuple[float, ...]
    exponents: tuple[float, ...]
    bend: float

    def damage(self, interval: int, fraction: float, steps: float) -> float:
        """Log ratio of losses that is left after as much training as the whole network's `steps` cost."""
        return float(self.levels[interval] * (1.0 / fraction - 1.0) ** self.bend * steps ** -self.exponents[interval])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"levels": list(self.levels), "exponents": list(self.exponents), "bend": self.bend}


def fit_recovery(trials: Sequence[Sequence[TriedSize]], lengths: Sequence[int], base_macs: int) -> Recovery:
    """The model that fits all trials best, in the sense of least squares with priors (maximum a posteriori).

    Errors are relative for large damage and absolute for small, which asinh(damage / floor) makes equally large; a cut that seems to help
    is one whose damage is small. Trials of some intervals are noisier than those of others, so each has a floor of its own, from what
    the fit leaves. Intervals share the bend, and are drawn to a common level and exponent as far as their own trials leave these open.

    Args:
        trials: For each interval the sizes tried; one without any gets the common level and exponent.
        lengths: Of each trial, in steps of the whole network.
        base_macs: MACs of the whole network.
    """
    count, longest = len(trials), max(lengths)
    rows = [
        (index, math.log(base_macs / size.macs - 1.0), math.log(length / longest), damage)
        for index, tried in enumerate(trials)
        for size in tried
        for length, damage in zip(lengths, size.damages, strict=True)
        if size.macs < base_macs
    ]
    where = np.asarray([row[0] for row in rows], dtype=int)
    cut, length, damage = np.asarray([row[1:] for row in rows], dtype=float).reshape(-1, 3).T
    means, doubts = np.asarray(list(_MEANS.values())).T
    floors = np.full(count, FLOOR)

    def expected(values: FloatArray) -> FloatArray:
        exponents: FloatArray = values[:count][where] + values[-1] * cut - values[count : 2 * count][where] * length
        return np.exp(exponents)

    def errors(values: FloatArray) -> FloatArray:
        level, exponent, common, floor = values[:count], values[count : 2 * count], values[2 * count :], floors[where]
        misfit = (np.arcsinh(expected(values) / floor) - np.arcsinh(damage / floor)) / _MISFIT
        spread = np.concatenate([(level - common[0]) / _SPREADS["level"], (exponent - common[1]) / _SPREADS["exponent"]])
        return np.concatenate([misfit, spread, (common - means) / doubts])

    found = np.concatenate([np.full(count, means[0]), np.full(count, means[1]), means])
    limits = [-20.0] * count + [0.0] * count + [-20.0, 0.0, 0.0], [5.0] * count + [2.0] * count + [5.0, 2.0, 5.0]
    looks = np.maximum(1, np.bincount(where, minlength=count))
    for _ in range(_PASSES):
        found = least_squares(errors, found, bounds=limits).x
        unexplained = np.square(damage - expected(found)) - np.square(_MISFIT * expected(found))
        noise = np.maximum(0.0, np.bincount(where, unexplained, count) / looks)
        floors = np.maximum(floors, np.sqrt(noise) / _MISFIT)
    level, exponent, bend = found[:count], found[count : 2 * count], float(found[-1])
    return Recovery(tuple(np.exp(level + exponent * math.log(longest)).tolist()), tuple(exponent.tolist()), bend)


@dataclass(frozen=True)
class Measurement:
    """What measured budgets are read off.

    Attributes:
        sizes: That were tried, for each interval.
        whole_losses: Of the whole network at the end of its trial, for each interval.
        lengths: After which trials were looked at, in steps of the whole network.
        expert_steps: What the training of each interval's expert costs, in the same unit.
        recovery: The model that fits the trials.
    """

    sizes: tuple[tuple[TriedSize, ...], ...]
    whole_losses: tuple[float, ...]
    lengths: tuple[int, ...]
    expert_steps: tuple[float, ...]
    recovery: Recovery

    @classmethod
    def of(
        cls,
        sizes: tuple[tuple[TriedSize, ...], ...],
        whole_losses: tuple[float, ...],
        lengths: tuple[int, ...],
        expert_steps: tuple[float, ...],
        base_macs: int,
    ) -> Measurement:
        """Trials with the model fitted to them."""
        return cls(sizes, whole_losses, lengths, expert_steps, fit_recovery(sizes, lengths, base_macs))

    def options(self, interval: int, base_macs: int, damage: str = "relative") -> tuple[Option, ...]:
        """Sizes that an expert may have, every fortieth of the base from the smallest that was tried to the whole, with their damage.

        Args:
            interval: Which; one in which nothing was tried stays whole.
            base_macs: MACs of the whole network.
            damage: "relative", the log ratio of losses, or "absolute", their difference.
        """
        tried, whole = self.sizes[interval], self.whole_losses[interval]
        smallest = min(tried, key=lambda size: size.fraction, default=TriedSize(1.0, base_macs, ()))
        parts = range(math.ceil(smallest.fraction * PARTS - 1e-9), PARTS + 1)
        sizes = {part / PARTS: base_macs * part // PARTS for part in parts} | {smallest.fraction: smallest.macs}
        left = {fraction: self.recovery.damage(interval, fraction, self.expert_steps[interval]) for fraction in sizes}
        return tuple(
            Option(fraction, macs, left[fraction] if damage == "relative" else whole * math.expm1(left[fraction]))
            for fraction, macs in sorted(sizes.items())
        )

    def note(self) -> str:
        """A sentence for the reader."""
        falls = ", ".join(f"{exponent:.2f}" for exponent in self.recovery.exponents)
        return (
            f"Damage is what is left after {min(self.expert_steps):,.0f} steps of the whole network's cost, as trials of "
            f"{self.lengths[-1]:,} let expect: by interval it falls as steps to the power of minus {falls}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "sizes": [[{**vars(size), "damages": list(size.damages)} for size in tried] for tried in self.sizes],
            "whole_losses": list(self.whole_losses),
            "lengths": list(self.lengths),
            "expert_steps": list(self.expert_steps),
            "recovery": self.recovery.to_dict(),
            "left": [self._left(interval) for interval in range(len(self.sizes))],
        }

    def _left(self, interval: int) -> list[tuple[float, float]]:
        """Sizes and their damage after an expert's steps, for whoever draws it."""
        smallest = min((size.fraction for size in self.sizes[interval]), default=1.0)
        spread = sorted({smallest, *(part / PARTS for part in range(1, PARTS + 1) if part / PARTS > smallest)})
        return [(fraction, self.recovery.damage(interval, fraction, self.expert_steps[interval])) for fraction in spread]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_dict`."""
        sizes = (tuple(TriedSize(size["fraction"], size["macs"], tuple(size["damages"])) for size in tried) for tried in data["sizes"])
        recovery = Recovery(tuple(data["recovery"]["levels"]), tuple(data["recovery"]["exponents"]), float(data["recovery"]["bend"]))
        return cls(tuple(sizes), tuple(data["whole_losses"]), tuple(data["lengths"]), tuple(data["expert_steps"]), recovery)
