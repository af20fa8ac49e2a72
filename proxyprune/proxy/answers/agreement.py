"""Agreement of repeated answers, and whether it is more than chance.

Ties are common in scores from 0 to 10, so everything here counts them: tau is Kendall's tau-b, W has the correction for ties, and chance
is what the same answers give when each is shuffled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxyprune.support.seeds import derived_seed

Matrix = NDArray[np.float64]

_SHUFFLES = 2000
SIGNIFICANCE = 0.05
"""Agreement counts as more than chance when shuffled answers reach it less often than this."""

_POSITION_Z = 3.0


@dataclass(frozen=True)
class Agreement:
    """Agreement of several answers about the same blocks.

    Attributes:
        tau: Mean Kendall tau-b over all pairs of answers.
        concordance: Kendall's W with the correction for ties: 1 is full agreement, and 1 / answers is expected by chance.
        chance: Share of shuffled answers whose W is at least as large, with the answers themselves counted in.
        position: Mean tau-b of an answer with the order in which it was asked.
        position_z: The same in standard deviations of its distribution by chance.
    """

    tau: float
    concordance: float
    chance: float
    position: float
    position_z: float

    @property
    def follows_the_list(self) -> bool:
        """True if the answers lean on the order of the list more than chance explains."""
        return abs(self.position_z) > _POSITION_Z

    def verdict(self, answers: int) -> str | None:
        """Return the reason why a ranking of so little agreement should decide nothing; None when it may."""
        if self.chance > SIGNIFICANCE:
            return (
                f"{answers} answers agree no better than chance: mean Kendall tau {self.tau:.2f}, Kendall's W {self.concordance:.2f} "
                f"(random answers reach that in {self.chance:.0%} of cases; the limit is {SIGNIFICANCE:.0%})."
            )
        if self.tau <= 0:
            return f"{answers} answers contradict each other: mean Kendall tau {self.tau:.2f}."
        if self.follows_the_list and abs(self.position) > self.tau:
            return (
                f"The answers follow the order in which the blocks were listed (mean Kendall tau {self.position:.2f}) more than they "
                f"follow each other ({self.tau:.2f}); that order was random."
            )
        return None


def kendall_tau(first: Sequence[float] | Matrix, second: Sequence[float] | Matrix) -> float:
    """Kendall's tau-b: ties in one of the two weaken it, 0 when one of them is all ties.

    Args:
        first: A score for each item, [n].
        second: Scores of the same items, [n].

    Source:
        Kendall 1945, The treatment of ties in ranking problems. Deviations: 0 instead of no value.
    """
    signs = [np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first, np.float64), np.asarray(second, np.float64))]
    scale = math.sqrt(float(np.square(signs[0]).sum()) * float(np.square(signs[1]).sum()))
    return float((signs[0] * signs[1]).sum()) / scale if scale else 0.0


def mean_pairwise_tau(answers: Matrix) -> float:
    """Mean tau-b over all pairs of rows of [answers, items]."""
    pairs = list(itertools.combinations(answers, 2))
    return sum(kendall_tau(a, b) for a, b in pairs) / len(pairs)


def mid_ranks(answers: Matrix) -> Matrix:
    """Rank of every item within its row, 0 for the lowest score; ties share the mean of their places.

    Args:
        answers: [..., items].
    """
    below = (answers[..., None] > answers[..., None, :]).sum(-1)
    equal = (answers[..., None] == answers[..., None, :]).sum(-1)
    ranks: Matrix = below + (equal - 1) / 2.0
    return ranks


def concordance(ranks: Matrix) -> NDArray[np.float64]:
    """Kendall's W of mid-ranks [..., answers, items], with the correction for ties; 0 where all is tied.

    Source:
        Kendall & Babington Smith 1939; the correction as in Siegel & Castellan 1988, eq. 9.18. Deviations: none.
    """
    answers, items = ranks.shape[-2:]
    sums = ranks.sum(-2)
    spread = np.square(sums - sums.mean(-1, keepdims=True)).sum(-1)
    # Sum over tie groups of (t^3 - t) equals (n^3 - n) - 12 * sum of squared deviations of the mid-ranks.
    within = 12.0 * np.square(ranks - (items - 1) / 2.0).sum(-1)
    most = answers * within.sum(-1)
    result: NDArray[np.float64] = np.divide(12.0 * spread, most, out=np.zeros_like(spread), where=most > 0)
    return result


def measure_agreement(answers: Matrix, listed: Matrix, seed: int) -> Agreement:
    """Agreement of at least two answers.

    Args:
        answers: Scores, [answers, items].
        listed: Place of each item in the list that the answer was given to, [answers, items]; NaN where items were in different lists.
        seed: For the shuffles that stand for chance.
    """
    ranks = mid_ranks(answers)
    found = float(concordance(ranks[None])[0])
    rng = np.random.default_rng(derived_seed(seed, "chance"))
    shuffled = rng.permuted(np.broadcast_to(ranks, (_SHUFFLES, *ranks.shape)), axis=-1)
    at_least = int((concordance(shuffled) >= found - 1e-12).sum())
    position, z = _position(answers, listed)
    return Agreement(mean_pairwise_tau(answers), found, (1 + at_least) / (1 + _SHUFFLES), position, z)


def _position(answers: Matrix, listed: Matrix) -> tuple[float, float]:
    count, items = answers.shape
    if items < 2 or np.isnan(listed).any():
        return 0.0, 0.0
    mean = sum(kendall_tau(scores, places) for scores, places in zip(answers, listed, strict=True)) / count
    variance = 2.0 * (2 * items + 5) / (9.0 * items * (items - 1)) / count  # of tau without ties, by chance
    return mean, mean / math.sqrt(variance)
