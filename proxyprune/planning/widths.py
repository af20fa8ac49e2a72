"""Widths from importances and a budget.

Widths come from one total order of single steps, and there are two ways to make it.

From the importance of blocks: group g keeps the fraction lam ** (1.5 - importance_g) of its atoms, rounded up to a count that it can
have; as lam falls from 1 to 0 the groups lose one step after the other, and that succession is the order. Groups of equal importance
therefore shrink alike, the most important one loses (in logarithms) a third of what the least important one does, and nothing falls below
its floor.

From channel scores that are in one unit for the whole network: the step that loses least for what it saves goes first.

The plan is the shortest prefix of the order that meets the budget, found by bisection on exact costs, then filled up with single steps.
Cutting by count, never by a threshold on scores, makes ties harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from proxyprune.planning.constraints import UNROUNDED
from proxyprune.planning.price import IndexArray, Price
from proxyprune.planning.shared_widths import SharedWidths

TOLERANCE = 0.01
"""Share of the base by which a plan may miss its budget without a note."""

_WIDEST_SEARCH = 24  # groups that the repair of a coarse plan looks at
_GRID_SIZE = 8192  # plans in one grid
_GRID_PLANS = 60_000  # plans in all grids together
_PROBES = 15  # plans per call while bisecting: four bits a call


@dataclass(frozen=True)
class Steps:
    """All single steps of all groups, in the order in which the family takes them.

    Attributes:
        allowed: Allowed widths; groups that keep equal widths are one entry, a unit.
        owner: Unit that takes each step, [steps].
        preference: Units, most important first; ties in graph order.
    """

    allowed: tuple[SharedWidths, ...]
    owner: IndexArray
    preference: tuple[int, ...]
    _table: IndexArray = field(init=False, repr=False, compare=False)
    _unit: IndexArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        longest = max((len(entry.counts) for entry in self.allowed), default=1)
        groups = sum(len(entry.groups) for entry in self.allowed)
        table, unit = np.zeros((groups, longest), np.int64), np.zeros(groups, np.int64)
        for index, entry in enumerate(self.allowed):
            padded = np.pad(entry.counts, ((0, longest - len(entry.counts)), (0, 0)), mode="edge")
            table[list(entry.groups)] = padded.T
            unit[list(entry.groups)] = index
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_unit", unit)

    @property
    def deepest(self) -> IndexArray:
        """Last level of each unit, [units]."""
        return np.array([len(entry.counts) - 1 for entry in self.allowed], dtype=np.int64)

    def levels(self, taken: int) -> IndexArray:
        """Level of each unit after the first `taken` steps, [units]."""
        return np.bincount(self.owner[:taken], minlength=len(self.allowed)).astype(np.int64)

    def atoms(self, levels: IndexArray) -> IndexArray:
        """Atoms kept at these levels [..., units], [..., groups]."""
        return np.asarray(self._table[np.arange(len(self._unit)), levels[..., self._unit]])


def order_steps(allowed: Sequence[SharedWidths], of_groups: NDArray[np.float64]) -> Steps:
    """Order the single steps of all units by the lam at which the family takes them.

    The step from count a to count b is taken where lam ** (1.5 - importance) falls to b: a group of a few large atoms (heads) never keeps
    less than its share for being coarse. Steps that happen together: the less important unit first, then the later one. The importance of a
    unit is the mean over its groups.
    """
    importance = np.array([of_groups[list(entry.groups)].mean() for entry in allowed], dtype=np.float64)
    owner, phase, moment = [], [], []
    for index, entry in enumerate(allowed):
        reached = (entry.counts[1:] / entry.atoms).mean(axis=1)
        owner.append(np.full(len(reached), index, dtype=np.int64))
        phase.append(entry.phases[1:])
        # Rounded, so that the last bit of a platform's logarithm decides nothing.
        moment.append(np.round(-np.log(reached) / (1.5 - importance[index]), 10))
    owners = np.concatenate(owner) if owner else np.zeros(0, np.int64)
    keys = (-owners, importance[owners], np.concatenate(moment), np.concatenate(phase)) if owner else ()
    order = np.lexsort(keys) if owner else owners
    preference = sorted(range(len(allowed)), key=lambda index: (-importance[index], index))
    return Steps(tuple(allowed), owners[order], tuple(preference))


def order_by_loss(allowed: Sequence[SharedWidths], lost: Sequence[NDArray[np.float64]], savings: NDArray[np.float64]) -> Steps:
    """Order the single steps of all units by what they lose for what they save, least first.

    Within a unit steps come in order: one that is worth less than the step before it goes with that one. Steps worth the same: the unit
    that has lost the smaller share first, then the later one.

    Args:
        allowed: Allowed widths of each unit.
        lost: What is lost at each level of each unit, rising from 0, in one measure for all units.
        savings: Cost that leaves with one atom of each group, [groups].
    """
    owner, phase, worth, share = [], [], [], []
    for index, entry in enumerate(allowed):
        saved = (-np.diff(entry.counts, axis=0) * savings[list(entry.groups)]).sum(axis=1)
        rate = np.divide(np.diff(lost[index]), saved, out=np.full(len(saved), np.inf), where=saved > 0)
        owner.append(np.full(len(rate), index, dtype=np.int64))
        phase.append(entry.phases[1:])
        worth.append(np.maximum.accumulate(rate))
        share.append(1.0 - entry.shares[1:])
    owners = np.concatenate(owner) if owner else np.zeros(0, np.int64)
    keys = (-owners, np.concatenate(share), np.concatenate(worth), np.concatenate(phase)) if owner else ()
    order = np.lexsort(keys) if owner else owners
    last = {group: place for place, group in enumerate(owners[order].tolist())}
    preference = sorted(range(len(allowed)), key=lambda index: (-last.get(index, len(owners)), index))
    return Steps(tuple(allowed), owners[order], tuple(preference))


def savings_per_atom(price: Price, allowed: Sequence[SharedWidths], atoms: IndexArray) -> NDArray[np.float64]:
    """Cost that leaves with one atom of each group, [groups]: the mean from its first level to its last, all others as in `atoms`."""
    groups = len(atoms)
    levels = np.zeros((groups, 2), np.int64)
    for entry in allowed:
        levels[list(entry.groups)] = entry.counts[[0, -1]].T
    plans = np.repeat(atoms[None], 2 * groups, axis=0)
    plans[np.arange(2 * groups), np.repeat(np.arange(groups), 2)] = levels.ravel()
    most, least = price.many(plans).reshape(-1, 2).T
    return np.asarray((most - least) / np.maximum(levels[:, 0] - levels[:, 1], 1), dtype=np.float64)


def solve_widths(steps: Steps, price: Price, limit: int, base: int) -> IndexArray | None:
    """Atoms kept per group, [groups], at a cost of at most `limit` and as close to it as the steps allow.

    Returns:
        The atoms, or None when even the narrowest network costs more.
    """
    solver = _WidthSolver(steps, price, limit, slack=int(TOLERANCE * base))
    levels = solver.solve()
    return None if levels is None else steps.atoms(levels)


class _WidthSolver:
    def __init__(self, steps: Steps, price: Price, limit: int, slack: int) -> None:
        self._steps = steps
        self._price = price
        self._limit = limit
        self._slack = slack

    def solve(self) -> IndexArray | None:
        zero, deepest = np.zeros_like(self._steps.deepest), self._steps.deepest
        levels = self._search(zero, deepest)
        if levels is None:
            return None
        levels = self._fill(levels, zero)
        return self._repair(levels) if self._gap(levels) > self._slack else levels

    def _cost(self, levels: IndexArray) -> int:
        return self._price.one(self._steps.atoms(levels))

    def _gap(self, levels: IndexArray) -> int:
        return self._limit - self._cost(levels)

    def _search(self, least: IndexArray, most: IndexArray) -> IndexArray | None:
        """Return the shortest affordable prefix of the order, each group held between two levels."""

        def at(taken: int) -> IndexArray:
            return np.clip(self._steps.levels(taken), least, most)

        low, high = 0, len(self._steps.owner)
        ends = self._price.many(self._steps.atoms(np.stack((at(low), at(high)))))
        if ends[1] > self._limit:
            return None
        if ends[0] <= self._limit:
            return at(low)
        probes = _PROBES if self._price.batched else 1
        while high - low > 1:  # low is too dear, high is affordable
            points = np.unique(np.linspace(low, high, min(probes, high - low - 1) + 2).astype(np.int64))[1:-1].tolist()
            affordable = self._price.many(self._steps.atoms(np.stack([at(point) for point in points]))) <= self._limit
            first = int(np.argmax(affordable)) if affordable.any() else len(points)
            low, high = ([low, *points][first], [*points, high][first])
        return at(high)

    def _fill(self, levels: IndexArray, least: IndexArray) -> IndexArray:
        """Give steps back, best group first, one a group; more only while the plan misses the budget by more than the tolerance."""
        while True:
            filled = self._fill_once(levels, least)
            if np.array_equal(filled, levels) or self._gap(filled) <= self._slack:
                return filled
            levels = filled

    def _fill_once(self, levels: IndexArray, least: IndexArray) -> IndexArray:
        waiting = [index for index in self._steps.preference if levels[index] > least[index]]
        while waiting:
            alone = np.repeat(levels[None], len(waiting), axis=0)
            alone[np.arange(len(waiting)), waiting] -= 1
            waiting = [w for w, cost in zip(waiting, self._price.many(self._steps.atoms(alone)), strict=True) if cost <= self._limit]
            if not waiting:
                break
            # Take as long a run from the front as fits together; costs only rise with widths, so a group that does not fit now never will.
            together = np.repeat(levels[None], len(waiting), axis=0)
            for row, index in enumerate(waiting):
                together[row:, index] -= 1
            fits = self._price.many(self._steps.atoms(together)) <= self._limit
            run = len(waiting) if fits.all() else int(np.argmin(fits))
            levels = together[run - 1]
            waiting = waiting[run + 1 :]
        return levels

    def _repair(self, levels: IndexArray) -> IndexArray:
        """Look for a closer plan where steps are coarse; below default floors only as a last resort, never off rounded widths."""
        if not levels.any():
            return levels
        worst = max(int(entry.phases[level]) for entry, level in zip(self._steps.allowed, levels.tolist(), strict=True))
        for lenient in (False, True):
            reached = [(entry.phases <= worst) | (lenient & (entry.phases & UNROUNDED == 0)) for entry in self._steps.allowed]
            bottom = np.array([int(np.flatnonzero(mask)[-1]) for mask in reached], dtype=np.int64)
            levels = self._repair_above(levels, bottom)
            if self._gap(levels) <= self._slack:
                break
        return levels

    def _repair_above(self, levels: IndexArray, bottom: IndexArray) -> IndexArray:
        """First with one group held a step off and the others solved again, then in the grid around the best so far."""
        for least, most in self._neighbours(levels, bottom):
            found = self._search(least, most)
            found = None if found is None else self._fill(found, least)
            if found is not None and self._gap(found) < self._gap(levels):
                levels = found
            if self._gap(levels) <= self._slack:
                return levels
        left = _GRID_PLANS if self._price.batched else _GRID_PLANS // 3
        for reach in (1, 2, 4, 8, 16, 32):
            for spans in self._grids(levels, bottom, reach):
                levels, priced = self._best_around(levels, spans)
                left -= priced
                if left < 0 or self._gap(levels) <= self._slack:
                    return levels
        return levels

    def _grids(self, levels: IndexArray, bottom: IndexArray, reach: int) -> list[dict[int, IndexArray]]:
        """Return sets of groups, the preferred first, with levels at most `reach` away: few enough to try in all combinations."""
        grids: list[dict[int, IndexArray]] = []
        size = _GRID_SIZE + 1
        for group in self._steps.preference:
            span = np.arange(max(levels[group] - reach, 0), min(levels[group] + reach, bottom[group]) + 1, dtype=np.int64)
            if len(span) > 1:
                if size * len(span) > _GRID_SIZE:
                    grids.append({})
                    size = 1
                grids[-1][group] = span
                size *= len(span)
        return grids

    def _best_around(self, levels: IndexArray, spans: Mapping[int, IndexArray]) -> tuple[IndexArray, int]:
        """Return the plan within the tolerance that moves fewest steps, or else the closest to the budget; and how many were priced."""
        axes = np.meshgrid(*spans.values(), indexing="ij")
        plans = np.repeat(levels[None], axes[0].size, axis=0)
        plans[:, list(spans)] = np.stack([axis.ravel() for axis in axes], axis=1)
        gaps = self._limit - self._price.many(self._steps.atoms(plans))
        moved = np.abs(plans - levels).sum(axis=1)
        distance = np.where(gaps < 0, np.iinfo(np.int64).max, np.maximum(gaps - self._slack, 0))
        return plans[np.lexsort((gaps, moved, distance))[0]], len(plans)

    def _neighbours(self, levels: IndexArray, bottom: IndexArray) -> list[tuple[IndexArray, IndexArray]]:
        """Bounds (least and most level of each group) that force one group up or down by a step."""
        zero = np.zeros_like(levels)
        pairs = []
        for index in self._steps.preference:
            if levels[index] > 0:
                most = bottom.copy()
                most[index] = levels[index] - 1
                pairs.append((zero, most))
            if levels[index] < bottom[index]:
                least = zero.copy()
                least[index] = levels[index] + 1
                pairs.append((least, bottom))
        return pairs[: 2 * _WIDEST_SEARCH]
