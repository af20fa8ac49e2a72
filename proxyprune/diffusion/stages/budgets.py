"""The compute of each interval's expert: by the published formula, or what measured damage says.

The formula (arXiv:2312.13307): FLOPs(i) = (i / N + (N - i) / N * k) * F for i = 1 ... N, with k in (0, 1]. Which end is i = N is not
published; `capacity` says which. Its mean over intervals is (N + 1) / (2N) + k (N - 1) / (2N), which tends to (1 + k) / 2. What a user pays
is the mean over the *sampler's* steps, and k is solved for that. Measured damage needs no formula: a knapsack over the interval's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxyprune.errors import InputError, TargetError
from proxyprune.support.dataclass_json import from_plain, to_plain

_HALVINGS = 60  # of the range of a scale; beyond the precision of a float


@dataclass(frozen=True)
class Budgets:
    """Fractions of what a step of the base costs, by interval.

    Attributes:
        fractions: One for each interval, cleanest first; 1.0 stays whole.
        steps: Sampler steps in each interval, which the mean is weighted with.
        method: How they were chosen.
        k: k of the formula, or None.
        notes: Sentences for the reader.
        metric: What the fractions are shares of: "macs" or "time".
    """

    fractions: tuple[float, ...]
    steps: tuple[int, ...]
    method: str
    k: float | None = None
    notes: tuple[str, ...] = ()
    metric: str = "macs"

    def __post_init__(self) -> None:
        if len(self.fractions) != len(self.steps) or not all(0.0 < f <= 1.0 for f in self.fractions) or sum(self.steps) <= 0:
            raise InputError(f"Expected fractions in (0, 1] and a number of steps for each interval, found {self.fractions}, {self.steps}.")

    @property
    def mean(self) -> float:
        """Mean fraction over the sampler's steps."""
        return weighted_mean(self.fractions, self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": 1, **to_plain(self, omit=("notes",)), "mean": self.mean, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Budgets:
        """Read what `to_dict` wrote."""
        return from_plain(cls, data)


def weighted_mean(fractions: Sequence[float], steps: Sequence[int]) -> float:
    """Mean of the fractions over the sampler's steps."""
    return math.fsum(f * n for f, n in zip(fractions, steps, strict=True)) / sum(steps)


def formula(count: int, k: float, capacity: str = "clean") -> tuple[float, ...]:
    """Return the published fractions, cleanest interval first.

    Args:
        count: Number of intervals N.
        k: What the smallest would be without its own share, in (0, 1].
        capacity: "clean" gives the cleanest interval i = N, "noisy" the noisiest.
    """
    rising = tuple(min(1.0, i / count + (count - i) / count * k) for i in range(1, count + 1))
    return rising[::-1] if capacity == "clean" else rising


def solve_k(target: float, steps: Sequence[int], capacity: str = "clean") -> float:
    """k for which the mean over the sampler's steps is `target`; the formula is linear in k, so this is exact.

    Raises:
        TargetError: If no k in (0, 1] does it.
    """
    count = len(steps)
    lowest = weighted_mean(formula(count, 0.0, capacity), steps)
    slope = weighted_mean(formula(count, 1.0, capacity), steps) - lowest
    k = (target - lowest) / slope if slope > 0 else math.nan
    if target == 1.0:
        return 1.0
    if not 0.0 < k <= 1.0:
        raise TargetError(
            f"With {count} intervals and {tuple(steps)} sampler steps in them, the formula gives a mean above {lowest:.3f} and at most 1, "
            f"so {target} cannot be reached with k in (0, 1]."
        )
    return k


def by_formula(target: float, steps: Sequence[int], capacity: str = "clean", k: float | None = None) -> Budgets:
    """Budgets by the formula, with k given or solved.

    Its mean is lowest at k = 0. For a target below that, which the formula has no answer to, the fractions of k = 0 keep their proportions.
    """
    end = f"the larger experts are at the {capacity} end."
    lowest = formula(len(steps), 0.0, capacity)
    reached = weighted_mean(lowest, steps)
    if k is None and 0.0 < target <= reached:
        scaled = tuple(fraction * target / reached for fraction in lowest)
        ratio = target / reached
        note = f"The formula's lowest mean is {reached:.3f}, at k = 0; experts are {ratio:.3f} times as large as at that mean; {end}"
        return Budgets(scaled, tuple(steps), "formula", 0.0, (note,))
    solved = solve_k(target, steps, capacity) if k is None else k
    origin = "follows from the target" if k is None else "was given, so the target is not used"
    return Budgets(formula(len(steps), solved, capacity), tuple(steps), "formula", solved, (f"k = {solved:.4f} {origin}; {end}",))


@dataclass(frozen=True)
class Option:
    """One size that an interval's expert may have.

    Attributes:
        fraction: Of the base's MACs, as planned; 1.0 is the whole network.
        macs: Exact MACs.
        damage: What it costs in loss once the expert is trained, over the whole network with the same training.
    """

    fraction: float
    macs: int
    damage: float


def allocate(
    options: Sequence[Sequence[Option]], steps: Sequence[int], limit_macs: int, weights: Sequence[float] | None = None
) -> tuple[Option, ...]:
    """One option for each interval, so that the weighted sum of damages is least and MACs fit.

    This is a multiple-choice knapsack. States (MACs, damage) that another state beats on both counts are dropped, nothing else is, so
    the result is optimal; costs are integers, so the limit is met exactly. Ties go to fewer MACs.

    Args:
        options: For each interval.
        steps: Sampler steps in each interval.
        limit_macs: Most MACs over all steps of one image.
        weights: What the damage of each interval counts; its sampler steps by default.

    Raises:
        TargetError: If even the smallest options are too large.
    """
    least = sum(n * min(o.macs for o in choices) for n, choices in zip(steps, options, strict=True))
    if least > limit_macs:
        raise TargetError(
            f"The smallest sizes tried need {least:,} MACs an image over the sampler's steps, the budget is {limit_macs:,}. "
            "Add smaller fractions to budgets.sizes or raise budgets.target."
        )
    states: list[tuple[int, float, tuple[Option, ...]]] = [(0, 0.0, ())]
    for count, weight, choices in zip(steps, steps if weights is None else weights, options, strict=True):
        useful = choices if count else (min(choices, key=lambda o: (o.damage, o.macs)),)  # another sampler may step into it
        grown = [(m + count * o.macs, d + weight * o.damage, (*chosen, o)) for m, d, chosen in states for o in useful]
        states = _undominated([state for state in grown if state[0] <= limit_macs])
    return min(states, key=lambda state: (state[1], state[0]))[2]


def _undominated(states: list[tuple[int, float, tuple[Option, ...]]]) -> list[tuple[int, float, tuple[Option, ...]]]:
    kept: list[tuple[int, float, tuple[Option, ...]]] = []
    for state in sorted(states, key=lambda state: (state[0], state[1])):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept


def by_burden(target: float, steps: Sequence[int], burdens: Sequence[float], smallest: float) -> Budgets:
    """Budgets in proportion to what each interval carries, between the smallest size and the whole network.

    Args:
        target: Mean fraction over the sampler's steps.
        steps: Sampler steps in each interval.
        burdens: Of each interval, above 0, in any unit.
        smallest: Least that an expert may get.

    Raises:
        TargetError: If the target is below the smallest size.
    """
    if target < smallest:
        raise TargetError(f"budgets.target is {target}, and the smallest size is {smallest}; add a smaller one to budgets.sizes.")

    def fractions(scale: float) -> tuple[float, ...]:
        return tuple(min(1.0, max(smallest, scale * burden)) for burden in burdens)

    low, high = 0.0, 1.0 / min(burdens)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if weighted_mean(fractions(middle), steps) <= target else (low, middle)
    note = f"In proportion to the burden of each interval: {', '.join(f'{burden / math.fsum(burdens):.0%}' for burden in burdens)}."
    return Budgets(fractions(low), tuple(steps), "complexity", None, (note,))


def by_measurement(
    options: Sequence[Sequence[Option]], steps: Sequence[int], target: float, base_macs: int, damage_per: str = "interval"
) -> Budgets:
    """Budgets from measured damage.

    The sum over steps of MACs may be at most `target` of the whole network's; of all choices that fit, the one found has the least damage.

    Args:
        options: For each interval the sizes to choose from, the whole network among them.
        steps: Sampler steps in each interval.
        target: Mean fraction of the base's MACs over the sampler's steps.
        base_macs: MACs of the whole network.
        damage_per: "interval" adds damage up over intervals, each of which counts the same, "step" over the sampler's steps.
    """
    weights = [float(n) for n in steps] if damage_per == "step" else [1.0] * len(steps)
    chosen = allocate(options, steps, math.floor(target * base_macs * sum(steps)), weights)
    damage = math.fsum(w * o.damage for w, o in zip(weights, chosen, strict=True)) / sum(weights)
    kind = "a sampler step" if damage_per == "step" else "an interval"
    note = f"The optimal choice of {math.prod(map(len, options)):,}; expected mean damage {damage:.4g} {kind}."
    return Budgets(tuple(o.fraction for o in chosen), tuple(steps), "measured", None, (note,))
