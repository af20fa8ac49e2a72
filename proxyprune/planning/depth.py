"""Choose the blocks that leave when a plan removes whole blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.ranking import Ranking
from proxyprune.tracing.names import is_inside

BlockPrice = Callable[[Collection[str]], int]
"""Cost of the network without some blocks, in the budget's metric."""

SHARE_THROUGH_DEPTH = 0.5
"""Most of the reduction that mode "both" takes out as whole blocks."""


Leaving = frozenset[str]
"""Blocks that leave together."""


def removal_order(graph: ModelGraph, ranking: Ranking, kept: Collection[str], removable: Sequence[Leaving]) -> list[Leaving]:
    """Return what may be removed, least important first; of equal ones the later first.

    Args:
        graph: The traced model.
        ranking: Its block scores.
        kept: Blocks that must stay.
        removable: Blocks, or sets of blocks that only leave together; a set counts with its mean score.
    """
    position = {block.id: index for index, block in enumerate(graph.blocks)}
    free = [blocks for blocks in removable if blocks.isdisjoint(kept)]
    scores = ranking.removal_scores or ranking.scores
    score = {blocks: sum(scores[block] for block in sorted(blocks)) / len(blocks) for blocks in free}
    return sorted(free, key=lambda blocks: (score[blocks], -min(position[block] for block in blocks)))


def solve_depth(leaving: Sequence[Leaving], price: BlockPrice, limit: int) -> frozenset[str] | None:
    """Blocks to remove: lowest score first until the cost is within the limit, then the best ones back that still fit.

    Args:
        leaving: What may be removed, least important first.
        price: Cost of the network without some blocks.
        limit: The most it may cost.

    Returns:
        Ids of the removed blocks, or None when removing all of them is not enough.
    """
    if price(drop_nested(leaving)) > limit:
        return None
    low, high = 0, len(leaving)  # removing `low` blocks is too little, `high` is enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if price(drop_nested(leaving[:middle])) <= limit else (middle, high)
    removed = set(leaving[:high])
    for blocks in reversed(leaving[:high]):
        if price(drop_nested(removed - {blocks})) <= limit:
            removed.discard(blocks)
    return drop_nested(removed)


def share_of_blocks(leaving: Sequence[Leaving], price: BlockPrice, *, base: int, limit: int) -> int:
    """Return the number of blocks that mode "both" removes before widths do the rest.

    Lowest score first, as long as blocks make up no more than their share of the reduction; at least one, when one alone does not
    overshoot.
    """
    stop = base - SHARE_THROUGH_DEPTH * (base - limit)
    count = 0
    while count < len(leaving) and price(drop_nested(leaving[: count + 1])) >= stop:
        count += 1
    if count == 0 and leaving and price(drop_nested(leaving[:1])) >= limit:
        return 1
    return count


def drop_nested(leaving: Collection[Leaving]) -> frozenset[str]:
    """Return all blocks that leave, without those that lie inside another one."""
    chosen = frozenset().union(*leaving)
    return frozenset(block for block in chosen if not any(other != block and is_inside(block, other) for other in chosen))
