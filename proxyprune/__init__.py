"""Structured pruning of PyTorch networks to a compute budget, with pluggable importance scorers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyprune.graph import Block, ChannelGroup, Member, ModelGraph
    from proxyprune.ranking import Ranking
    from proxyprune.read import trace

__version__ = "0.1.0"

_HOMES = {
    "trace": "read",
    "ModelGraph": "graph",
    "Block": "graph",
    "ChannelGroup": "graph",
    "Member": "graph",
    "Ranking": "ranking",
}
"""Public name -> module; imported on first use, so that `import proxyprune` does not load torch."""

__all__ = ["Block", "ChannelGroup", "Member", "ModelGraph", "Ranking", "trace"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"proxyprune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'proxyprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
