"""The importance of each block, channel group and atom for a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import InvalidScoreError, WeightsError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.ranking import Ranking

if TYPE_CHECKING:
    from torch import nn


def check_scores(graph: ModelGraph, ranking: Ranking) -> None:
    """Make sure that a ranking belongs to a graph.

    Raises:
        InvalidScoreError: If the ranking does not score exactly the graph's blocks.
    """
    missing = [block.id for block in graph.blocks if block.id not in ranking.scores]
    unknown = [block for block in ranking.scores if block not in graph.block_by_id]
    if missing or unknown:
        raise InvalidScoreError(
            f"The ranking by '{ranking.scorer}' does not fit this {graph.model_class} with {len(graph.blocks)} blocks: "
            f"{len(missing)} without a score {missing[:3]}, {len(unknown)} unknown {unknown[:3]}. Score this graph again."
        )


def block_importance(graph: ModelGraph, ranking: Ranking) -> dict[str, float]:
    """Return the importance of each block in [0, 1]: the mean of its score and its rank.

    Scores alone are of no use when one outlier presses all others together, ranks alone make much of a hair's breadth; equal scores get
    equal importance either way.
    """
    scores = np.array([ranking.scores[block.id] for block in graph.blocks], dtype=np.float64)
    _, position, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - (sizes + 1) / 2  # mean rank of each tied set, from 0
    ranks = middle[position] / max(len(scores) - 1, 1) if len(scores) > 1 else np.full(len(scores), 0.5)
    return {block.id: float(value) for block, value in zip(graph.blocks, (scores + ranks) / 2, strict=True)}


def importance_by_group(graph: ModelGraph, ranking: Ranking) -> NDArray[np.float64]:
    """Return the importance of each prunable group, [groups]: the largest of the blocks that own a part of it."""
    blocks = block_importance(graph, ranking)
    rest = sum(blocks.values()) / max(len(blocks), 1)
    owners = [[blocks[block] for block in group.blocks if block in blocks] or [rest] for group in graph.prunable]
    return np.array([round(max(values), 12) for values in owners], dtype=np.float64)


def comparable_channels(graph: ModelGraph, ranking: Ranking) -> bool:
    """Return True if channels of different groups can be weighed against each other: one unit, and every prunable group scored."""
    return ranking.comparable_channels and all(group.id in ranking.channel_scores for group in graph.prunable)


def lost_importance(group: ChannelGroup, scores: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what leaves with the worst atoms when only some stay, [counts]; from every bin the same number, as `best_atoms` chooses.

    Args:
        group: The group.
        scores: Importance of each atom, [atoms].
        counts: Numbers of atoms that stay.
    """
    if group.bins is None:
        return _lost_in_order(scores, group.atoms - counts)
    bins = np.asarray(group.bins)
    each = np.unique(bins)
    parts = [_lost_in_order(scores[bins == bin_], (group.atoms - counts) // len(each)) for bin_ in each]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def _lost_in_order(scores: NDArray[np.float64], leaving: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(np.sort(scores))))[leaving]


def kept_atoms(
    graph: ModelGraph, ranking: Ranking, counts: Mapping[str, int], model: nn.Module | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the atoms of each cut group that stay: the best ones, and of equal ones the first.

    The order comes from the ranking's channel scores; where it has none, from the magnitude of all coupled slices of `model`; without a
    model, the first atoms stay.

    Args:
        graph: The traced model.
        ranking: Its scores.
        counts: Atoms to keep, by group id.
        model: Where weights are read.

    Raises:
        InvalidScoreError: If channel scores do not fit their group.
        WeightsError: If weights give a group a magnitude that is not finite.
    """
    groups = [graph.by_id[group] for group in counts]
    unscored = [group for group in groups if group.id not in ranking.channel_scores]
    by_weight = _magnitudes(unscored, model) if model is not None and unscored else {}
    kept = {}
    for group in groups:
        scores = _channel_scores(group, ranking)
        if scores is None:
            scores = by_weight.get(group.id, np.zeros(group.atoms))
        kept[group.id] = best_atoms(group, scores, counts[group.id])
    return kept


def best_atoms(group: ChannelGroup, scores: NDArray[np.float64], count: int) -> tuple[int, ...]:
    """Return the `count` best atoms of a group, ascending; the same number from every bin, and of equal scores the lower index.

    Args:
        group: The group.
        scores: Importance of each atom, [atoms].
        count: How many stay; a multiple of the number of bins.
    """
    order = np.argsort(-scores, kind="stable")
    if group.bins is None:
        return tuple(np.sort(order[:count]).tolist())
    bins = np.asarray(group.bins)[order]
    each = count // len(np.unique(bins))
    chosen = [order[bins == bin_][:each] for bin_ in np.unique(bins)]
    return tuple(np.sort(np.concatenate(chosen)).tolist())


def _channel_scores(group: ChannelGroup, ranking: Ranking) -> NDArray[np.float64] | None:
    if group.id not in ranking.channel_scores:
        return None
    scores = np.asarray(ranking.channel_scores[group.id], dtype=np.float64)
    if scores.shape != (group.atoms,) or not np.isfinite(scores).all():
        raise InvalidScoreError(
            f"Scorer '{ranking.scorer}' must give group '{group.id}' one finite score for each of its {group.atoms} atoms; "
            f"found {len(scores)} scores, {int(np.isfinite(scores).sum())} of them finite. Correct the scorer, or omit the group."
        )
    return scores


def _magnitudes(groups: Iterable[ChannelGroup], model: nn.Module) -> dict[str, NDArray[np.float64]]:
    from proxyprune.scoring.tools.channel_importance import group_importance
    from proxyprune.scoring.tools.weights import parameters_of

    scores = {group: np.asarray(values, dtype=np.float64) for group, values in group_importance(parameters_of(model), groups).items()}
    for group, values in scores.items():
        if not np.isfinite(values).all():
            raise WeightsError(f"The weights of group '{group}' are not finite. Repair or reload the weights before pruning.")
    return scores
