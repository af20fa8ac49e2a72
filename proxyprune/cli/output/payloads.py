"""Results as plain JSON types, for --json."""

from __future__ import annotations

from typing import Any

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.text import block_dict
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import ScorerInfo
from proxyprune.support.versions import made_with

SCHEMA = 1


def graph_payload(graph: ModelGraph) -> dict[str, Any]:
    """Return what `describe --json` prints."""
    return graph.to_dict()


def times_payload(graph: ModelGraph) -> dict[str, Any]:
    """Return the predicted nanoseconds by block, "" for what lies in none; nothing for a graph without times."""
    return {} if graph.cost.time is None else {"block_nanoseconds": graph.cost.time.by_block(graph.cost.full)}


def ranking_payload(graph: ModelGraph, ranking: Ranking, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what `score --json` prints: the ranking as `Ranking.from_dict` reads it, and the structure that it belongs to.

    Args:
        graph: The network.
        ranking: Its ranking.
        asked: What asking a language model took, or None when none was asked.
    """
    return {
        **ranking.to_dict(),
        "order": list(ranking.order),
        "model_class": graph.model_class,
        "fingerprint": graph.fingerprint,
        "macs": {block.id: block.macs for block in graph.blocks},
        "blocks": [block_dict(block) for block in graph.blocks],
        **times_payload(graph),
        "made_with": made_with(),
        **({} if asked is None else {"asked": asked}),
    }


def scorers_payload(infos: tuple[ScorerInfo, ...]) -> dict[str, Any]:
    """Return what `scorers --json` prints."""
    return {
        "schema": SCHEMA,
        "scorers": [
            {
                "name": info.name,
                "origin": info.origin,
                "target": info.target,
                "needs": None if info.needs is None else list(info.needs),
                "summary": info.summary,
                "error": info.error,
            }
            for info in infos
        ],
    }
