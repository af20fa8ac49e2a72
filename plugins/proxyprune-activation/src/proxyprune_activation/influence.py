"""Block influence: a block that hands its input on nearly unchanged can go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from proxyprune import ModelGraph, ScoringContext
from proxyprune.scoring import Calibration, Hook, Ranking, half_saturation, module_of
from proxyprune_activation.watching import floats_of, run_watched


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
        meters = {block.id: _Meter() for block in graph.blocks}
        run_watched(calibration, [(module_of(calibration.model, block), meter.hook) for block, meter in meters.items()])
        influence = {block: meter.influence for block, meter in meters.items()}
        unknown = [block for block, value in influence.items() if value is None]
        notes = [f"Block influence over {len(calibration.batches)} calibration batches; channels are left to their magnitude."]
        if unknown:
            notes.append(f"Input and output differ in shape, so these got 0.5: {', '.join(unknown)}.")
        return Ranking(scores=half_saturation(influence), scorer=self.name, seed=context.seed, notes=tuple(notes))


class _Meter:
    """Mean of 1 - cos over all positions that passed through one block."""

    def __init__(self) -> None:
        self._total = 0.0
        self._positions = 0

    @property
    def influence(self) -> float | None:
        return max(0.0, self._total / self._positions) if self._positions else None

    @property
    def hook(self) -> Hook:
        def measure(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            after = next(floats_of(output), None)
            if after is None:
                return
            before = next((value for value in floats_of((*args, *kwargs.values())) if value.shape == after.shape), None)
            if before is not None:
                cosine = functional.cosine_similarity(_positions(before), _positions(after), dim=1)
                self._total += float((1.0 - cosine.double()).sum())
                self._positions += cosine.numel()

        return measure


def _positions(value: Tensor) -> Tensor:
    """[positions, channels]: channels are dimension 1 of a feature map [n, c, h, w] and the last one of tokens [n, t, c]."""
    return (value.movedim(1, -1) if value.ndim > 3 else value).reshape(-1, value.shape[1 if value.ndim > 3 else -1])
