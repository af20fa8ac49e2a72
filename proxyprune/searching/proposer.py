"""The contract of a proposer, and the proposers by name.

A proposal is a function of the history and nothing else: a proposer keeps no state between calls. What was measured decides what comes
next, so a search that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.pruning.advice import Advice
from proxyprune.scoring import ScoringContext
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.scale import DECIMALS, significant
from proxyprune.searching.round import Round

LEVERAGE = 64.0
"""The factor of a channel's score when its block goes from the least to the most important one."""


@dataclass(frozen=True)
class History:
    """Everything that a proposer may look at.

    Attributes:
        graph: The traced network.
        context: What a scorer is given; its brief has the goal, and its seed is the search's.
        mode: "width", "depth" or "both".
        start: The one-shot ranking of round 0, with its channel scores.
        rounds: All rounds so far, the start first.
        widths: Channels that each prunable group may have, ascending.
    """

    graph: ModelGraph = field(repr=False)
    context: ScoringContext = field(repr=False)
    mode: str
    start: Ranking = field(repr=False)
    rounds: tuple[Round, ...]
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

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
        """Return a proposal: the start's ranking with other block scores.

        Channels keep the start's order within their group. Where the start weighs channels across groups, those of a block that gained or
        lost importance gain or lose with it.
        """
        rounded = {block: round(min(1.0, max(0.0, float(scores[block]))), DECIMALS) for block in self.start.scores}
        channels = self._leaning(rounded) if self.start.comparable_channels else self.start.channel_scores
        return replace(
            self.start,
            scores=rounded,
            scorer=proposer,
            channel_scores=channels,
            removal_scores={},  # the proposed scores decide which blocks leave, too
            confidence=None,
            notes=(note,),
            unreliable=None,
        )

    def _leaning(self, scores: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
        leaning = {}
        for group, values in self.start.channel_scores.items():
            moved = [scores[block] - self.start.scores[block] for block in self.graph.by_id[group].blocks if block in scores]
            factor = LEVERAGE ** (sum(moved) / max(len(moved), 1))
            leaning[group] = tuple(significant(value * factor) for value in values)
        return leaning

    def loss_of(self, entry: Round) -> float:
        """Return a loss to tell an optimiser: the measured one (of the original, for a duplicate), or worse than all when there is none."""
        loss = entry.loss if entry.duplicate_of is None else self.rounds[entry.duplicate_of].loss
        known = [one.loss for one in self.rounds if one.loss is not None]
        return loss if loss is not None else max(known, default=0.0) + abs(max(known, default=0.0)) + 1.0


@dataclass(frozen=True)
class Proposal:
    """A ranking together with limits of the plan.

    Attributes:
        ranking: The ranking to plan.
        advice: Limits; one that no plan can follow is left out, with a note.
        formula: The formula that the ranking comes from, or None.
        widths: Exact widths in channels by group, the most important first. The solver keeps the budget: a width that its group cannot
            have, and the last ones that no plan can have beside the others, are left out, with a note.
    """

    ranking: Ranking
    advice: tuple[Advice, ...] = ()
    formula: str | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


CHEAP_REPEATS = 60
"""`Proposer.repeats` where a proposal costs next to nothing."""


class Proposer(Protocol):
    """Suggests the next ranking to measure.

    Attributes:
        name: Recorded in rankings and in the memory; it includes every setting that matters.
        repeats: Duplicates in a row after which it has nothing new to say and the search ends.

    A proposer may have a method `together(rounds)`: the most proposals that may follow from the same rounds; otherwise any number may.
    """

    @property
    def name(self) -> str:
        """Name with settings."""
        ...

    @property
    def repeats(self) -> int:
        """Duplicates in a row that end the search."""
        ...

    def propose(self, history: History) -> Ranking | Proposal:
        """Return the next ranking, and limits if there are any; the same for the same history.

        In a search with a batch, the last rounds of the history may not be measured yet; they have no loss.
        """
        ...
