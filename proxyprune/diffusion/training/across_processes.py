"""What one process finds out and all of them need: a scorer that is asked once, and its answer in every process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from proxyprune.errors import ScoringError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import Scorer, ScoringContext
from proxyprune.scoring.ranking import Ranking


def told(accelerator: Any, value: Any) -> Any:
    """What the main process has, in every process; to be called by all of them.

    Args:
        accelerator: accelerate's Accelerator, or None for one process.
        value: Anything that can be pickled; that of the other processes is not looked at.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value if accelerator.is_main_process else None])[0]


@dataclass(frozen=True)
class SharedScorer:
    """A scorer that the main process asks; the other processes are told what it said.

    A language model may answer each process something else, and then each would cut its copy of the network in another way.

    Attributes:
        scorer: Who is asked.
        accelerator: accelerate's Accelerator, or None for one process.
    """

    scorer: Scorer
    accelerator: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    @property
    def needs(self) -> frozenset[str]:
        """The scorer's."""
        return self.scorer.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Ask, and tell the others; when asking fails, every process stops.

        Raises:
            ScoringError: In the processes that did not ask, if asking failed.
        """
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return self.scorer.score(graph, context)
        if not self.accelerator.is_main_process:
            ranking, problem = told(self.accelerator, None)
            if problem is not None:
                raise ScoringError(f"The main process got no ranking: {problem}")
            return Ranking.from_dict(ranking)
        try:
            found = self.scorer.score(graph, context)
            answer = (found.to_dict(), None)
        except Exception as error:  # whatever it is: the others wait for an answer
            told(self.accelerator, (None, f"{type(error).__name__}: {error}"))
            raise
        told(self.accelerator, answer)
        return found
