"""Block scores as a prior on somebody else's channel scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.scale import significant


def with_block_prior(graph: ModelGraph, channels: Ranking, scores: Mapping[str, float], strength: float) -> Ranking:
    """Return a ranking with the channels of one scorer and the blocks of another.

    Every channel score of a group is multiplied by exp(strength x z), where z is the mean standardised block score of the blocks that the
    group lies in. With strength 0 the channel scores stay as they are. Channel scores that are not in one unit for the whole network keep
    their order within a group, which is all that planning reads of them. Scores
    below 0 are divided by the factor, so that important blocks never lose by it.

    Args:
        graph: The traced network.
        channels: The ranking that has the channel scores.
        scores: Importance in [0, 1] of every block.
        strength: Weight of the block scores, from 0 up.

    Returns:
        `channels` with other block scores, and with the prior on its channel scores.
    """
    z = _standardised(scores)
    weighted = {}
    for group, values in channels.channel_scores.items():
        found = [z[block] for block in graph.by_id[group].blocks if block in z]
        factor = math.exp(strength * sum(found) / max(len(found), 1))
        weighted[group] = tuple(significant(value * factor if value >= 0 else value / factor) for value in values)
    return replace(channels, scores=dict(scores), channel_scores=weighted if strength else channels.channel_scores)


def _standardised(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores with mean 0 and standard deviation 1; zeros if all are equal."""
    values = np.array(list(scores.values()), dtype=np.float64)
    spread = float(values.std()) if values.size else 0.0
    standard = (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
    return dict(zip(scores, standard.tolist(), strict=True))
