"""Which blocks leave when a plan removes whole blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.ranking import Ranking
from proxyprune.tracing.names import is_inside

BlockPrice = Callable[[Collection[str]], int]
"""Cost of the network without some blocks, in the budget's metric."""

SHARE_THROUGH_DEPTH = 0.5
"""Most of the reduction that mode "both" takes out as whole blocks."""


def removal_order(graph: ModelGraph, ranking: Ranking, kept: Collection[str]) -> list[str]:
    """Blocks that may be removed, least important first; of equal ones the later first.

    Args:
        graph: The traced model.
        ranking: Its block scores.
        kept: Blocks that must stay.
    """
    position = {block.id: index for index, block in enumerate(graph.blocks)}
    free = [block.id for block in graph.blocks if block.removable and block.id not in kept]
    scores = ranking.removal_scores or ranking.scores
    return sorted(free, key=lambda block: (scores[block], -position[block]))


def solve_depth(leaving: Sequence[str], price: BlockPrice, limit: int) -> frozenset[str] | None:
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
    for block in reversed(leaving[:high]):
        if price(drop_nested(removed - {block})) <= limit:
            removed.discard(block)
    return drop_nested(removed)


def share_of_blocks(leaving: Sequence[str], price: BlockPrice, *, base: int, limit: int) -> int:
    """How many blocks mode "both" removes before widths do the rest.

    Lowest score first, as long as blocks make up no more than their share of the reduction; at least one, when one alone does not
    overshoot.
    """
    stop = base - SHARE_THROUGH_DEPTH * (base - limit)
    count = 0
    while count < len(leaving) and price(drop_nested(leaving[: count + 1])) >= stop:
        count += 1
    if count == 0 and leaving and price(leaving[:1]) >= limit:
        return 1
    return count


def drop_nested(blocks: Collection[str]) -> frozenset[str]:
    """The same blocks without those that lie inside another one."""
    chosen = frozenset(blocks)
    return frozenset(block for block in chosen if not any(other != block and is_inside(block, other) for other in chosen))
