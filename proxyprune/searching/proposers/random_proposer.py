"""Propose rankings at random."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import CHEAP_REPEATS, History
from proxyprune.support.seeds import derived_seed


@dataclass(frozen=True)
class RandomProposer:
    """Uniform block scores, drawn anew for each round: the control that every other proposer has to beat."""

    name: str = field(default="random", init=False)
    repeats: int = field(default=CHEAP_REPEATS, init=False)

    def propose(self, history: History) -> Ranking:
        """Draw a number for each block."""
        generator = np.random.default_rng(derived_seed(history.context.seed, "random proposer", len(history.rounds)))
        scores = dict(zip(history.start.scores, generator.random(len(history.start.scores)).tolist(), strict=True))
        return history.ranking(scores, self.name, "Block scores drawn at random.")
