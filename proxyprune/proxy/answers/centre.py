"""From several answers to one ranking: the Borda and the Kemeny centre.

Borda orders items by their mean rank. Kemeny is the order with the fewest disagreements, pair by pair, with all answers; it is less moved
by one odd answer, and hard to compute, so it is exact for few items and the best of a local search from Borda's order for many.

Ties are broken by the mean raw score, and after that by the MACs: of two blocks that are alike to the model, the cheaper one is kept,
because cutting the other saves more. Blocks that are equal in all of that stay tied.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from proxyprune.proxy.answers.agreement import Matrix, mid_ranks

EXACT_ITEMS = 12
"""Most items for which the Kemeny order is found exactly (dynamic programming over subsets, 2^n states)."""

_DECIMALS = 9


def borda(answers: Matrix, cost: Matrix) -> Matrix:
    """Return the importance in [0, 1]: the mean mid-rank over the answers, divided by the highest rank.

    Args:
        answers: Scores, [answers, items]; larger means keep.
        cost: What breaks the last ties, [items]; smaller means keep.

    Returns:
        [items].
    """
    count, items = answers.shape
    if items < 2:
        return np.full(items, 0.5)
    value = mid_ranks(answers).mean(0) / (items - 1)
    return np.asarray(np.round(np.clip(value + _tie_break(value, answers, cost, count), 0.0, 1.0), _DECIMALS))


def kemeny(answers: Matrix, cost: Matrix) -> Matrix:
    """Return the importance in [0, 1] in the Kemeny order: the k-th item gets the k-th largest value of the Borda centre."""
    start = borda(answers, cost)
    order = kemeny_order(answers, start)
    values = np.empty_like(start)
    values[list(order)] = np.sort(start)[::-1]
    return values


def kemeny_order(answers: Matrix, start: Matrix) -> tuple[int, ...]:
    """Items, most important first, with the fewest pairwise disagreements; equally good orders are decided by `start`."""
    items = answers.shape[1]
    by_start = tuple(sorted(range(items), key=lambda item: (-start[item], item)))
    preferred = preferences(answers)[np.ix_(by_start, by_start)]
    found = _exact(preferred) if items <= EXACT_ITEMS else _improved(preferred)
    return tuple(by_start[place] for place in found)


def preferences(answers: Matrix) -> NDArray[np.int64]:
    """Answers that rate item i above item j, [items, items]."""
    counts: NDArray[np.int64] = (answers[:, :, None] > answers[:, None, :]).sum(0, dtype=np.int64)
    return counts


def disagreements(order: tuple[int, ...], answers: Matrix) -> int:
    """Pairs, over all answers, that an answer rates the other way round."""
    preferred = preferences(answers)
    return sum(int(preferred[later, earlier]) for earlier, later in itertools.combinations(order, 2))


def _tie_break(value: Matrix, answers: Matrix, cost: Matrix, count: int) -> Matrix:
    """Offsets smaller than the smallest difference of mean ranks, which order what is tied there."""
    items = len(value)
    step = 0.25 / (count * (items - 1))  # half of the smallest difference between two mean mid-ranks
    tied = np.round(value, _DECIMALS)
    raw = np.round(answers.mean(0), _DECIMALS)
    offsets = np.zeros(items)
    for level in np.unique(tied):
        members = np.flatnonzero(tied == level)
        grades = sorted({(raw[item], -cost[item]) for item in members.tolist()})
        for item in members.tolist():
            offsets[item] = step * (grades.index((raw[item], -cost[item])) / len(grades) - (len(grades) - 1) / (2 * len(grades)))
    return offsets


def _exact(preferred: NDArray[np.int64]) -> tuple[int, ...]:
    """Dynamic programming: the best order of every subset, by which item of it comes first."""
    items = len(preferred)
    best: dict[int, tuple[int, int]] = {0: (0, -1)}  # subset -> (disagreements inside, first item)
    against = [[int(preferred[other, item]) for other in range(items)] for item in range(items)]  # put `item` before `other`: who minds
    for subset in range(1, 1 << items):
        members = [item for item in range(items) if subset >> item & 1]
        candidates = (
            (best[subset & ~(1 << item)][0] + sum(against[item][other] for other in members if other != item), item) for item in members
        )
        best[subset] = min(candidates)
    order, subset = [], (1 << items) - 1
    while subset:
        first = best[subset][1]
        order.append(first)
        subset &= ~(1 << first)
    return tuple(order)


def _improved(preferred: NDArray[np.int64]) -> tuple[int, ...]:
    """Local search: move single items to where they cause fewest disagreements, until no move helps."""
    order = list(range(len(preferred)))
    improved = True
    while improved:
        improved = False
        for item in tuple(order):
            place = order.index(item)
            rest = order[:place] + order[place + 1 :]
            above = np.concatenate(([0], np.cumsum(preferred[item, rest])))  # minded by those who want `item` above what precedes it
            below = np.concatenate((np.cumsum(preferred[rest, item][::-1])[::-1], [0]))
            total = above + below
            target = int(np.argmin(total))
            if total[target] < total[place]:
                order = [*rest[:target], item, *rest[target:]]
                improved = True
    return tuple(order)
