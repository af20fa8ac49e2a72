"""The control: a scorer that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import ScoringContext
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.scale import DECIMALS
from proxyprune.support.seeds import derived_seed


@dataclass(frozen=True)
class RandomScorer:
    """Uniform random importances: the control that every other scorer has to beat.

    Each block and each channel group draws from its own generator, seeded by its id, so a score does not change when other blocks come
    or go. The channels inside a group are ordered at random as well; pruning with it therefore removes random channels of random blocks.
    """

    name: str = field(default="random", init=False)
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Draw one number for each block and each atom."""
        blocks = {block.id: _draw(context.seed, "block", block.id, 1)[0] for block in graph.blocks}
        return Ranking(
            scores=blocks,
            removal_scores=blocks,  # a control: nothing may be measured in their place
            scorer=self.name,
            channel_scores={group.id: _draw(context.seed, "group", group.id, group.atoms) for group in graph.prunable},
            seed=context.seed,
            notes=("Drawn at random; nothing about the network was read.",),
        )


def _draw(seed: int, kind: str, name: str, count: int) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(derived_seed(seed, kind, name))
    values = torch.rand(count, generator=generator, dtype=torch.float64)
    return tuple(round(value, DECIMALS) for value in values.tolist())
