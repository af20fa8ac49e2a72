"""The damage of a cut that is left when an expert has been trained, read off trials that are far shorter.

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

from proxyprune.diffusion.process.noise_schedule import FloatArray
from proxyprune.diffusion.stages.budgets import Option
from proxyprune.errors import InputError
from proxyprune.support.dataclass_json import from_plain, to_plain

PARTS = 40
"""Sizes that a measured allocation chooses from are multiples of 1 / PARTS of the base."""
FLOOR = 0.01
"""Damage below this, one percent of the loss, is not told from none, however well the model fits."""
_MISFIT = 0.3  # relative error of the model where damage is large
_SPREADS = {"level": 0.5, "exponent": 0.25}  # of intervals about their mean: log damage at the end of a trial, power of its length
_MEANS = {"level": (-3.0, 2.0), "exponent": (0.5, 0.2), "size exponent": (1.2, 0.1)}  # before there is a trial, and how firmly


@dataclass(frozen=True)
class TriedSize:
    """A cut that was tried in an interval.

    Attributes:
        fraction: Of the base's MACs, in (0, 1).
        damages: Log ratio of its loss to the whole network's, after each length of the trial.
    """

    fraction: float
    damages: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0 or not all(map(math.isfinite, self.damages)):
            raise InputError(f"Expected a size in (0, 1) with finite damages, found {self.fraction} with {self.damages}.")


@dataclass(frozen=True)
class DamageRecovery:
    """Damage of a cut to a fraction f of the MACs after n steps: level (1 / f - 1) ** size_exponent n ** -exponent.

    Attributes:
        levels: For each interval, what a cut to a half costs after one step.
        exponents: For each interval, how fast damage falls with training.
        size_exponent: How much more the last channels matter than the first.
    """

    levels: tuple[float, ...]
    exponents: tuple[float, ...]
    size_exponent: float

    def damage(self, interval: int, fraction: float, steps: float) -> float:
        """Log ratio of losses that is left after as much training as the whole network's `steps` cost."""
        return float(self.levels[interval] * (1.0 / fraction - 1.0) ** self.size_exponent * steps ** -self.exponents[interval])


def fit_recovery(trials: Sequence[Sequence[TriedSize]], lengths: Sequence[int], most_passes: int = 30) -> DamageRecovery:
    """Return the model that fits all trials best, in the sense of least squares with priors (maximum a posteriori).

    Errors are relative for large damage and absolute for small, which asinh(damage / floor) makes equally large; a cut that seems to help
    is one whose damage is small. Trials of some intervals are noisier than those of others, so each has a floor of its own, which rises
    until it explains what the fit leaves. Intervals share the size exponent, and are drawn to a common level and exponent as far as their
    own trials leave these open.

    Args:
        trials: For each interval the sizes tried; one without any gets the common level and exponent.
        lengths: Of each trial, in steps of the whole network.
        most_passes: Between the fit and what it says about the noise of each interval; a handful is usual.
    """
    count, longest = len(trials), max(lengths)
    rows = [
        (index, math.log(1.0 / size.fraction - 1.0), math.log(length / longest), damage)
        for index, tried in enumerate(trials)
        for size in tried
        for length, damage in zip(lengths, size.damages, strict=True)
    ]
    where = np.asarray([row[0] for row in rows], dtype=int)
    cut, length, damage = np.asarray([row[1:] for row in rows], dtype=float).reshape(-1, 3).T
    means, doubts = np.asarray(list(_MEANS.values())).T
    points = np.maximum(1, np.bincount(where, minlength=count))

    def expected(values: FloatArray) -> FloatArray:
        logarithm: FloatArray = values[:count][where] + values[-1] * cut - values[count : 2 * count][where] * length
        return np.exp(logarithm)

    def errors(values: FloatArray, floor: FloatArray) -> FloatArray:
        level, exponent, common = values[:count], values[count : 2 * count], values[2 * count :]
        misfit = (np.arcsinh(expected(values) / floor) - np.arcsinh(damage / floor)) / _MISFIT
        spread = np.concatenate([(level - common[0]) / _SPREADS["level"], (exponent - common[1]) / _SPREADS["exponent"]])
        return np.concatenate([misfit, spread, (common - means) / doubts])

    floors, found = np.full(count, FLOOR), np.concatenate([np.full(count, means[0]), np.full(count, means[1]), means])
    limits = [-20.0] * count + [0.0] * count + [-20.0, 0.0, 0.0], [5.0] * count + [2.0] * count + [5.0, 2.0, 5.0]
    for _ in range(most_passes):
        found = least_squares(errors, found, bounds=limits, args=(floors[where],)).x
        unexplained = np.square(damage - expected(found)) - np.square(_MISFIT * expected(found))
        noise = np.sqrt(np.maximum(0.0, np.bincount(where, unexplained, count) / points))
        before, floors = floors, np.maximum(floors, noise / _MISFIT)
        if np.allclose(floors, before, rtol=0.01):
            break
    level, exponent, size_exponent = found[:count], found[count : 2 * count], float(found[-1])
    return DamageRecovery(tuple(np.exp(level + exponent * math.log(longest)).tolist()), tuple(exponent.tolist()), size_exponent)


@dataclass(frozen=True)
class Measurement:
    """The measurements that budgets are read off.

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
    recovery: DamageRecovery

    def remaining(self, interval: int) -> tuple[tuple[float, float], ...]:
        """Sizes that an expert may have, with the damage that remains when it has been trained.

        These are every fortieth of the base, from the smallest size that was tried to the whole. Where nothing was tried, the whole is all.
        """
        smallest = min((size.fraction for size in self.sizes[interval]), default=1.0)
        parts = {part / PARTS for part in range(1, PARTS + 1) if part / PARTS > smallest}
        steps = self.expert_steps[interval]
        return tuple((fraction, self.recovery.damage(interval, fraction, steps)) for fraction in sorted({smallest, *parts}))

    def options(self, interval: int, base_macs: int, damage: str = "relative") -> tuple[Option, ...]:
        """Return the sizes of `remaining` to choose from.

        Args:
            interval: Which.
            base_macs: MACs of the whole network.
            damage: "relative", the log ratio of losses, or "absolute", their difference, at the whole network's loss after its trial.
        """
        whole = self.whole_losses[interval]
        return tuple(
            Option(fraction, int(fraction * base_macs), left if damage == "relative" else whole * math.expm1(left))
            for fraction, left in self.remaining(interval)
        )

    def note(self) -> str:
        """Return a sentence for the reader."""
        tried = [index for index, sizes in enumerate(self.sizes) if sizes]
        falls = ", ".join(f"{self.recovery.exponents[index]:.2f} in interval {index}" for index in tried)
        fewest, most = min(self.expert_steps), max(self.expert_steps)
        steps = f"{most:,.0f}" if most - fewest < 1.0 else f"{fewest:,.0f} to {most:,.0f}"
        return (
            f"Damage is what remains after training that costs as much as {steps} steps of the whole network, judging by trials of "
            f"{self.lengths[-1]:,}; it falls as a power of the steps: {falls or 'nothing was tried'}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; "remaining" is for drawing."""
        remaining = [[list(point) for point in self.remaining(interval)] for interval in range(len(self.sizes))]
        return {**to_plain(self), "remaining": remaining}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` wrote."""
        return from_plain(cls, data)
