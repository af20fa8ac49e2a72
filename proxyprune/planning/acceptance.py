"""Rankings and targets that no plan is made from unless the caller accepts them."""

from __future__ import annotations

from proxyprune.errors import TargetError, UnreliableRankingError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.ranking import Ranking


def check_reliable(ranking: Ranking, *, accepted: bool) -> None:
    """Raise if a ranking is marked unreliable, unless that is accepted.

    Raises:
        UnreliableRankingError: If so.
    """
    if ranking.unreliable is not None and not accepted:
        raise UnreliableRankingError(
            f"The ranking of scorer '{ranking.scorer}' is marked unreliable, so no plan is made from it: {ranking.unreliable} Use another "
            "scorer or another model; or pass accept_unreliable=True (--accept-unreliable) to plan from it anyway."
        )


def check_costed(graph: ModelGraph, metric: str, *, accepted: bool) -> None:
    """Raise if the MACs of some ops are unknown and the target is one of MACs, unless that is accepted.

    Raises:
        TargetError: If so.
    """
    if metric == "macs" and graph.uncosted_ops and not accepted:
        raise TargetError(
            f"The MACs of {', '.join(graph.uncosted_ops)} are unknown, so a share of the rest is not a share of the whole network. "
            "Register a rule with its cost (proxyprune.register_rule), budget parameters instead (metric='params', --metric params), "
            "or pass accept_uncosted=True (--accept-uncosted) to exclude these ops from every figure."
        )
