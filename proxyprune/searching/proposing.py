"""The contract of a proposer, and the proposers by name.

A proposal is a function of the history and nothing else: a proposer keeps no state between calls. What was measured decides what comes
next, so a search that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from proxyprune.errors import UnknownNameError
from proxyprune.graph import ModelGraph
from proxyprune.ranking import Ranking
from proxyprune.scoring import Scorer, ScoringContext, find, score
from proxyprune.scoring.scale import DECIMALS, significant
from proxyprune.scoring.seeds import derived_seed
from proxyprune.searching.rounds import Round

LEVERAGE = 64.0
"""What a channel's score is multiplied by when its block goes from the least to the most important one."""


@dataclass(frozen=True)
class History:
    """Everything that a proposer may look at.

    Attributes:
        graph: The traced network.
        context: What a scorer is given; its brief has the goal, and its seed is the search's.
        mode: "width", "depth" or "both".
        start: The one-shot ranking of round 0, with its channel scores.
        rounds: All rounds so far, the start first.
    """

    graph: ModelGraph = field(repr=False)
    context: ScoringContext = field(repr=False)
    mode: str
    start: Ranking = field(repr=False)
    rounds: tuple[Round, ...]

    @property
    def best(self) -> Round:
        """The round that new proposals start from: the best measured one, and the start before there is any."""
        measured = [entry for entry in self.rounds if entry.loss is not None and entry.measured]
        return min(measured, key=lambda entry: (float(entry.loss or 0.0), entry.index)) if measured else self.rounds[0]

    @cached_property
    def movable(self) -> tuple[str, ...]:
        """Blocks whose score can change a plan in this mode, in graph order."""
        groups = {group.id for group in self.graph.prunable}
        narrows = [block.id for block in self.graph.blocks if groups.intersection(block.groups)]
        removable = [block.id for block in self.graph.blocks if block.removable]
        chosen = {"width": narrows, "depth": removable}.get(self.mode, [*narrows, *removable])
        return tuple(block.id for block in self.graph.blocks if block.id in set(chosen))

    def ranking(self, scores: Mapping[str, float], proposer: str, note: str) -> Ranking:
        """A proposal: the start's ranking with other block scores.

        Channels keep the start's order within their group. Where the start weighs channels across groups, those of a block that gained or
        lost importance gain or lose with it.
        """
        rounded = {block: round(min(1.0, max(0.0, float(scores[block]))), DECIMALS) for block in self.start.scores}
        channels = self._leaning(rounded) if self.start.comparable_channels else self.start.channel_scores
        return replace(
            self.start, scores=rounded, scorer=proposer, channel_scores=channels, confidence=None, notes=(note,), unreliable=None
        )

    def _leaning(self, scores: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
        leaning = {}
        for group, values in self.start.channel_scores.items():
            moved = [scores[block] - self.start.scores[block] for block in self.graph.by_id[group].blocks if block in scores]
            factor = LEVERAGE ** (sum(moved) / max(len(moved), 1))
            leaning[group] = tuple(significant(value * factor) for value in values)
        return leaning

    def loss_of(self, entry: Round) -> float:
        """A loss to tell an optimiser: the measured one (of the original, for a duplicate), or worse than all when there is none."""
        loss = entry.loss if entry.duplicate_of is None else self.rounds[entry.duplicate_of].loss
        known = [one.loss for one in self.rounds if one.loss is not None]
        return loss if loss is not None else max(known, default=0.0) + abs(max(known, default=0.0)) + 1.0


CHEAP_REPEATS = 60
"""`Proposer.repeats` where a proposal costs next to nothing."""


class Proposer(Protocol):
    """Suggests the next ranking to measure.

    Attributes:
        name: Recorded in rankings and in the memory; it includes every setting that matters.
        repeats: Duplicates in a row after which it has nothing new to say and the search ends.
    """

    @property
    def name(self) -> str:
        """Name with settings."""
        ...

    @property
    def repeats(self) -> int:
        """Duplicates in a row that end the search."""
        ...

    def propose(self, history: History) -> Ranking:
        """The next ranking; the same for the same history."""
        ...


@dataclass(frozen=True)
class ScorerProposer:
    """Asks a scorer again, with everything that was measured in its brief, and with another seed every time.

    A scorer of blocks only, such as a language model, borrows the channels of the start.

    A scorer that looks neither at the brief nor at the seed repeats itself; the search ends when it does.
    """

    scorer: Scorer
    repeats: int = 3

    @property
    def name(self) -> str:
        """The scorer's name, with the model that it asks when it asks one."""
        model = getattr(self.scorer, "model", None)
        return f"{self.scorer.name}({model})" if isinstance(model, str) else self.scorer.name

    def propose(self, history: History) -> Ranking:
        """Score with the attempts so far as memory."""
        attempts = tuple(attempt for entry in history.rounds if (attempt := entry.attempt()) is not None)
        context = history.context
        ranking = score(
            history.graph,
            self.scorer,
            model=context.model,
            batches=context.batches,
            loss_fn=context.loss_fn,
            seed=derived_seed(context.seed, "round", len(history.rounds)) % 2**31,
            example_inputs=context.example_inputs,
            brief=replace(context.brief, attempts=attempts),
        )
        if ranking.channel_scores:
            return ranking
        borrowed = history.ranking(ranking.scores, ranking.scorer, f"Channels are ordered as '{history.start.scorer}' orders them.")
        return replace(borrowed, confidence=ranking.confidence, notes=(*ranking.notes, *borrowed.notes), seed=ranking.seed)


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


def _evolution() -> Proposer:
    from proxyprune.searching.evolution import EvolutionProposer

    return EvolutionProposer()


def _coordinate() -> Proposer:
    from proxyprune.searching.coordinate import CoordinateProposer

    return CoordinateProposer()


PROPOSERS: Mapping[str, Callable[[], Proposer]] = {"random": RandomProposer, "evolution": _evolution, "coordinate": _coordinate}
"""Proposers that are no scorers; every registered scorer is a proposer too. A scorer named "random" is reached as "proxyprune:random"."""


def proposer_named(name: str) -> Proposer:
    """The proposer with this name; the name of a scorer means that scorer with memory.

    Raises:
        UnknownNameError: If neither a proposer nor a scorer has the name.
        ScorerLoadError: If the scorer cannot be loaded.
    """
    if name in PROPOSERS:
        return PROPOSERS[name]()
    try:
        return ScorerProposer(find(name, {}))
    except UnknownNameError as error:
        close = difflib.get_close_matches(name, PROPOSERS, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise UnknownNameError(f"No proposer is named '{name}'. {hint}Expected {', '.join(PROPOSERS)}, or a scorer. {error}") from error
