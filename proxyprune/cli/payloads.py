"""Results as plain JSON types, for --json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyprune.graph import Block, ChannelGroup, ModelGraph
    from proxyprune.ranking import Ranking
    from proxyprune.scoring.registry import ScorerInfo

SCHEMA = 1


def graph_payload(graph: ModelGraph) -> dict[str, Any]:
    """What `describe --json` prints."""
    return {
        "schema": SCHEMA,
        "model_class": graph.model_class,
        "fingerprint": graph.fingerprint,
        "macs": graph.macs,
        "params": graph.params,
        "blocks": [_block(block) for block in graph.blocks],
        "groups": [_group(group) for group in graph.groups],
        "unsupported_ops": list(graph.unsupported_ops),
        "uncosted_ops": list(graph.uncosted_ops),
    }


def ranking_payload(graph: ModelGraph, ranking: Ranking, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `score --json` prints: the ranking as `Ranking.from_dict` reads it, and which structure it belongs to.

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
        **({} if asked is None else {"asked": asked}),
    }


def scorers_payload(infos: tuple[ScorerInfo, ...]) -> dict[str, Any]:
    """What `scorers --json` prints."""
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


def _block(block: Block) -> dict[str, Any]:
    return {
        "id": block.id,
        "kind": block.kind,
        "class_name": block.class_name,
        "macs": block.macs,
        "params": block.params,
        "resolution": list(block.resolution),
        "widths": list(block.widths),
        "inputs": list(block.inputs),
        "groups": list(block.groups),
        "removable": block.removable,
    }


def _group(group: ChannelGroup) -> dict[str, Any]:
    return {
        "id": group.id,
        "width": group.width,
        "unit": group.unit,
        "pinned": group.pinned,
        "members": [[member.parameter, member.dim] for member in group.members],
        "blocks": list(group.blocks),
    }
