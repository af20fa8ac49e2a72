"""Let a scorer propose: it is given the history in its brief."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxyprune.scoring import Scorer, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import History
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
