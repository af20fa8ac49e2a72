"""Let a scorer propose: it is given the history in its brief."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.proxy.answers.widths import ProposedWidths
from proxyprune.proxy.prompt.widths_question import GroupWidths
from proxyprune.pruning.asked_advice import AskedAdvice, asked_advice, asks_advice
from proxyprune.scoring import Scorer, ScoringContext, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import History, Proposal
from proxyprune.support.seeds import derived_seed
from proxyprune.support.wording import counted
from proxyprune.tracing.module_state import unchanged


@runtime_checkable
class WidthsProposer(Protocol):
    """A scorer that can be asked for exact widths, as those that use a language model.

    Attributes:
        ask_widths: Whether it is to be asked.
    """

    ask_widths: bool

    def propose_widths(self, graph: ModelGraph, context: ScoringContext, groups: Mapping[str, GroupWidths]) -> ProposedWidths:
        """Return widths of channel groups of the graph."""
        ...


def asks_widths(scorer: object) -> bool:
    """Return True if a scorer is to be asked for exact widths."""
    return isinstance(scorer, WidthsProposer) and scorer.ask_widths is True


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
        """The scorer's name, with the model that it asks when it asks one, and whether it is asked for widths."""
        model = getattr(self.scorer, "model", None)
        widths = ", widths" if asks_widths(self.scorer) else ""
        return f"{self.scorer.name}({model}{widths})" if isinstance(model, str) else self.scorer.name

    def propose(self, history: History) -> Ranking | Proposal:
        """Score with the attempts so far as memory; ask for limits and exact widths too, if the scorer is one that is asked for them."""
        ranking, context = self._ranking(history), self._context(history)
        asked = asked_advice(self.scorer, history.graph, context) if asks_advice(self.scorer) else AskedAdvice()
        widths = self._widths(history, context) if asks_widths(self.scorer) and history.mode != "depth" else ProposedWidths()
        if not (asked.notes or asked.advice or widths.widths or widths.dropped):
            return ranking
        return Proposal(replace(ranking, notes=(*ranking.notes, *asked.notes, *self._notes(widths))), asked.advice, widths=widths.widths)

    def _widths(self, history: History, context: ScoringContext) -> ProposedWidths:
        """Ask for exact widths; the question has those of the best plan."""
        assert isinstance(self.scorer, WidthsProposer)
        plan = history.best.plan
        kept = {} if plan is None else {group: after for group, (_, after) in plan.widths.items()}
        groups = {group: GroupWidths(possible, kept.get(group, possible[-1])) for group, possible in history.widths.items()}
        with contextlib.nullcontext() if context.model is None else unchanged(context.model):
            return self.scorer.propose_widths(history.graph, context, groups)

    def _notes(self, found: ProposedWidths) -> tuple[str, ...]:
        """Return what was proposed, and what was dropped before it was planned."""
        if not (found.widths or found.dropped):
            return ()
        reason = f": {found.reason}" if found.reason else "."
        notes = [f"Scorer '{self.scorer.name}' proposed {counted(len(found.widths), 'exact width')}{reason}"]
        return (*notes, *(f"A width of '{self.scorer.name}' was left out before it was planned: {problem}." for problem in found.dropped))

    def _context(self, history: History) -> ScoringContext:
        """Return what the scorer is given: everything that was measured, and a seed of this round."""
        attempts = tuple(attempt for entry in history.rounds if (attempt := entry.attempt()) is not None)
        context = history.context
        seed = derived_seed(context.seed, "round", len(history.rounds)) % 2**31
        return replace(context, seed=seed, brief=replace(context.brief, attempts=attempts))

    def _ranking(self, history: History) -> Ranking:
        context = self._context(history)
        ranking = score(
            history.graph,
            self.scorer,
            model=context.model,
            batches=context.batches,
            loss_fn=context.loss_fn,
            seed=context.seed,
            example_inputs=context.example_inputs,
            brief=context.brief,
        )
        if ranking.channel_scores:
            return ranking
        borrowed = history.ranking(ranking.scores, ranking.scorer, f"Channels are ordered as '{history.start.scorer}' orders them.")
        return replace(borrowed, confidence=ranking.confidence, notes=(*ranking.notes, *borrowed.notes), seed=ranking.seed)
