"""Let a scorer propose: it is given the history in its brief."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxyprune.pruning.asked_advice import asked_advice, asks_advice
from proxyprune.scoring import Scorer, ScoringContext, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import History, Proposal
from proxyprune.support.seeds import derived_seed


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

    def propose(self, history: History) -> Ranking | Proposal:
        """Score with the attempts so far as memory; ask for limits too, if the scorer is one that is asked for advice."""
        ranking = self._ranking(history)
        if not asks_advice(self.scorer):
            return ranking
        asked = asked_advice(self.scorer, history.graph, self._context(history))
        return Proposal(replace(ranking, notes=(*ranking.notes, *asked.notes)), asked.advice)

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
