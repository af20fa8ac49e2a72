"""Block influence: a block that hands its input on nearly unchanged can go."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxyprune import ModelGraph, ScoringContext
from proxyprune.scoring import BlockInfluence, Calibration, Ranking
from proxyprune_activation.watching import run_watched


@dataclass(frozen=True)
class BlockInfluenceScorer:
    """One minus the cosine similarity of a block's input and output, averaged over positions, samples and calibration batches.

    At each position (pixel or token) the vector of channels before the block is compared with the one after it. A block whose output has
    another shape than any of its inputs has no influence to measure: it gets 0.5, like everything about which nothing is known, and is
    named in a note. Channels are not scored; planning orders them by magnitude.

    It misleads where the size and not the direction of the stream matters, where a small turn is decisive (the last blocks), and for
    blocks without a skip connection, whose output lives in another basis and always looks influential.

    Source:
        Men et al. 2024, arXiv:2403.03853 (ShortGPT), eq. 1. Deviations: feature maps as well as tokens; every ranked block, not only
        transformer layers.
    """

    name: str = field(default="block_influence", init=False)
    needs: frozenset[str] = field(default=frozenset({"loss"}), init=False)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """One forward pass over the batches."""
        calibration = Calibration.of(self, context)
        influence = BlockInfluence(graph, calibration.model)
        with influence.measured():
            run_watched(calibration, ())
        unknown = [block for block, value in influence.values.items() if value is None]
        notes = [f"Block influence over {len(calibration.batches)} calibration batches; channels are left to their magnitude."]
        if unknown:
            notes.append(f"Input and output differ in shape, so these got 0.5: {', '.join(unknown)}.")
        return Ranking(scores=influence.scores, scorer=self.name, seed=context.seed, notes=tuple(notes))
