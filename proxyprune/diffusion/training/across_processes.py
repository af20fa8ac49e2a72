"""Values of the main process in all processes, and a scorer that only the main process runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.errors import ScoringError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import Scorer, ScoringContext
from proxyprune.scoring.ranking import Ranking


def from_main_process(accelerator: Accelerator, value: Any) -> Any:
    """Return the main process's value in every process; all processes call this together.

    Args:
        accelerator: accelerate's Accelerator.
        value: Anything that can be pickled; that of the other processes is ignored.
    """
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value if accelerator.is_main_process else None])[0]


@dataclass(frozen=True)
class SharedScorer:
    """A scorer that runs in the main process only; the other processes receive its ranking.

    A language model may answer each process something else, and then each would cut its copy of the network in another way.

    Attributes:
        scorer: The scorer.
        accelerator: accelerate's Accelerator.
    """

    scorer: Scorer
    accelerator: Accelerator = field(repr=False)

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    @property
    def needs(self) -> frozenset[str]:
        """The scorer's."""
        return self.scorer.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Score in the main process and send the ranking to the others; if scoring fails, every process stops.

        Raises:
            ScoringError: In the other processes, if scoring failed.
        """
        if self.accelerator.num_processes == 1:
            return self.scorer.score(graph, context)
        if not self.accelerator.is_main_process:
            ranking, problem = from_main_process(self.accelerator, None)
            if problem is not None:
                raise ScoringError(f"The main process got no ranking: {problem}")
            return Ranking.from_dict(ranking)
        try:
            found = self.scorer.score(graph, context)
            answer = (found.to_dict(), None)
        except Exception as error:  # whatever it is: the others wait for an answer
            from_main_process(self.accelerator, (None, f"{type(error).__name__}: {error}"))
            raise
        from_main_process(self.accelerator, answer)
        return found
