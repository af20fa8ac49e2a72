"""Search with memory: propose, plan, measure, remember, until the budget of measurements is spent."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyprune.searching.proposing import History, Proposer, proposer_named
    from proxyprune.searching.rounds import Round
    from proxyprune.searching.run import SearchResult, search

__all__ = ["History", "Proposer", "Round", "SearchResult", "proposer_named", "search"]

_HOMES = {
    "History": "proposing",
    "Proposer": "proposing",
    "Round": "rounds",
    "SearchResult": "run",
    "proposer_named": "proposing",
    "search": "run",
}
"""Name -> module, imported on first use: `--help` loads nothing heavy."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"proxyprune.searching.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'proxyprune.searching' has no attribute {name!r}")
