"""Values of the main process in all processes, and a scorer that only the main process runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.errors import ScoringError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import Scorer, ScoringContext
from proxyprune.scoring.ranking import Ranking

T = TypeVar("T")


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


def computed_by_main_process(accelerator: Accelerator, compute: Callable[[], T], failed: Callable[[str], Exception]) -> T:
    """Return a result of the main process in every process; if it fails, every process stops. All processes call this together.

    Args:
        accelerator: accelerate's Accelerator.
        compute: Runs in the main process; its result can be pickled.
        failed: Makes the error of the other processes from a description of the failure.
    """
    if accelerator.num_processes == 1:
        return compute()
    if not accelerator.is_main_process:
        value, problem = from_main_process(accelerator, None)
        if problem is not None:
            raise failed(problem)
        return value  # type: ignore[no-any-return]  # unpickled
    try:
        found = compute()
    except Exception as error:  # whatever it is: the others wait for an answer
        from_main_process(accelerator, (None, f"{type(error).__name__}: {error}"))
        raise
    from_main_process(accelerator, (found, None))
    return found


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
        """Name of the scorer."""
        return self.scorer.name

    @property
    def needs(self) -> frozenset[str]:
        """Needs of the scorer."""
        return self.scorer.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Score in the main process and send the ranking to the others; if scoring fails, every process stops.

        Raises:
            ScoringError: In the other processes, if scoring failed.
        """
        return computed_by_main_process(
            self.accelerator,
            lambda: self.scorer.score(graph, context),
            lambda problem: ScoringError(f"The main process got no ranking: {problem}"),
        )
