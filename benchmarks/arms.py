"""Arms of the scorer benchmark that are no scorers of the package: controls, and a proxy whose skill is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from proxyprune import ModelGraph, Ranking, Scorer, ScoringContext
from proxyprune.scoring import find
from proxyprune.scoring.seeds import derived_seed


@dataclass(frozen=True)
class ChannelsByMagnitude:
    """A scorer with its channel scores taken away: planning then orders channels by magnitude, as for a language model.

    It separates what a scorer knows about blocks from what it knows about channels.
    """

    inner: Scorer

    @property
    def name(self) -> str:
        return f"{self.inner.name}, blocks only"

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """The inner ranking's blocks."""
        return replace(self.inner.score(graph, context), channel_scores={})


@dataclass(frozen=True)
class Shuffled:
    """The very scores of another scorer, handed to other blocks: the same spread, no knowledge."""

    inner: Scorer

    @property
    def name(self) -> str:
        return f"{self.inner.name}, shuffled"

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """The inner ranking's scores in an order that follows from the seed."""
        ranking = self.inner.score(graph, context)
        generator = np.random.default_rng(derived_seed(context.seed, "shuffled", self.inner.name))
        values = generator.permutation(list(ranking.scores.values())).tolist()
        return replace(ranking, scores=dict(zip(ranking.scores, values, strict=True)), unreliable=None)


@dataclass(frozen=True)
class SimulatedProxy:
    """NOT a language model: the ablation oracle plus noise, to show what a proxy of known skill would be worth.

    Ranks of the oracle become normal scores; the proxy's are skill * oracle + sqrt(1 - skill**2) * noise. With normal scores, Kendall's
    tau to the oracle is 2/pi * asin(skill) on average. No channel is scored, as with a language model.

    Args:
        skill: Correlation with the oracle, in [0, 1].
    """

    skill: float
    needs: frozenset[str] = frozenset({"loss"})

    @property
    def name(self) -> str:
        return f"simulated proxy {self.skill:g}"

    @property
    def expected_tau(self) -> float:
        """Mean Kendall tau to the oracle that the skill stands for."""
        return 2.0 / math.pi * math.asin(self.skill)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """The oracle's order, blurred."""
        oracle = find("ablation", {}).score(graph, context)
        count = len(oracle.scores)
        truth = stats.norm.ppf((stats.rankdata(list(oracle.scores.values())) - 0.5) / count)
        noise = np.random.default_rng(derived_seed(context.seed, "simulated proxy")).standard_normal(count)
        blurred = stats.rankdata(self.skill * truth + math.sqrt(1.0 - self.skill**2) * noise)
        scores = dict(zip(oracle.scores, ((blurred - 0.5) / count).tolist(), strict=True))
        note = f"Simulated: the ablation oracle plus noise, correlation {self.skill:g}; no language model was asked."
        return Ranking(scores=scores, scorer=self.name, seed=context.seed, notes=(note,))
