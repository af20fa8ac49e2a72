"""Arms of the scorer benchmark that are no scorers of the package: controls, and a proxy whose skill is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from proxyprune import ModelGraph, Ranking, Scorer, ScoringContext
from proxyprune.proxy import LocalScorer
from proxyprune.scoring import find
from proxyprune.support.seeds import derived_seed

REPLIES = Path(__file__).parent / "replies"
LOCAL_MODEL = "SmolLM2-135M-Instruct.Q4_1"
LOCAL_SAMPLES = 3

NOBODY = "http://127.0.0.1:9/v1"  # where nobody listens: answers come from the replies
LLM_ARMS = ("local LLM", "local LLM, real names", "local LLM, shuffled")


def local_llm(url: str | None, *, real_names: bool, samples: int = LOCAL_SAMPLES) -> LocalScorer:
    """SmolLM2-135M on a server of one's own: asked at `url`, or replayed from the committed replies."""
    return LocalScorer(
        model=LOCAL_MODEL,
        base_url=url or NOBODY,
        samples=samples,
        max_samples=samples,
        concurrency=1,
        timeout_seconds=1200.0,
        deadline_seconds=3000.0,
        real_names=real_names,
        statistics=(),
        cache=REPLIES,
        cache_mode="read-write" if url else "replay-only",
    )


def llm_arms(url: str | None) -> dict[str, Scorer]:
    """Return a real, tiny language model: names anonymised (the default), real names, and its own scores handed to other blocks."""
    anonymous, named = (local_llm(url, real_names=real_names) for real_names in (False, True))
    return dict(zip(LLM_ARMS, (anonymous, named, shuffled(anonymous)), strict=True))


@dataclass(frozen=True)
class Variant:
    """A scorer whose ranking is changed before it is used; it separates what a scorer knows of one thing from what it knows of another.

    Args:
        inner: The scorer.
        label: What is added to its name.
        change: (ranking, seed) -> ranking.
    """

    inner: Scorer
    label: str
    change: Callable[[Ranking, int], Ranking]

    @property
    def name(self) -> str:
        return f"{self.inner.name}, {self.label}"

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Return the inner ranking, changed."""
        return self.change(self.inner.score(graph, context), context.seed)


def blocks_only(inner: Scorer) -> Variant:
    """Channel scores taken away: planning then orders channels by magnitude, as for a language model."""
    return Variant(inner, "blocks only", lambda ranking, _: replace(ranking, channel_scores={}))


def widths_by_block(inner: Scorer) -> Variant:
    """Channels are not weighed across groups: widths follow the block scores, and channels are chosen inside their group."""
    return Variant(inner, "widths by block", lambda ranking, _: replace(ranking, comparable_channels=False))


def shuffled(inner: Scorer) -> Variant:
    """Return the scores of another scorer, assigned to other blocks: the same spread, no knowledge."""

    def handed_out(ranking: Ranking, seed: int) -> Ranking:
        generator = np.random.default_rng(derived_seed(seed, "shuffled", inner.name))
        values = generator.permutation(list(ranking.scores.values())).tolist()
        return replace(ranking, scores=dict(zip(ranking.scores, values, strict=True)), unreliable=None)

    return Variant(inner, "shuffled", handed_out)


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
        """Return the oracle's order, blurred."""
        oracle = find("ablation", {}).score(graph, context)
        count = len(oracle.scores)
        truth = stats.norm.ppf((stats.rankdata(list(oracle.scores.values())) - 0.5) / count)
        noise = np.random.default_rng(derived_seed(context.seed, "simulated proxy")).standard_normal(count)
        blurred = stats.rankdata(self.skill * truth + math.sqrt(1.0 - self.skill**2) * noise)
        scores = dict(zip(oracle.scores, ((blurred - 0.5) / count).tolist(), strict=True))
        note = f"Simulated: the ablation oracle plus noise, correlation {self.skill:g}; no language model was asked."
        return Ranking(scores=scores, scorer=self.name, seed=context.seed, notes=(note,))
