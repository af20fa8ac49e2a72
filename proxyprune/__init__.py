"""Structured pruning of PyTorch networks to a compute budget, with pluggable importance scorers.

import proxyprune as pp

result = pp.prune(model, example_inputs, target=0.6)
pp.save(result, "pruned")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyprune.apply import apply_plan
    from proxyprune.carry import carry_optimizer, carry_state
    from proxyprune.comparing import Comparison, compare
    from proxyprune.errors import ProxyPruneError
    from proxyprune.flow import PruneResult, Report, prune
    from proxyprune.graph import Block, ChannelGroup, Member, ModelGraph
    from proxyprune.measure import Recovery
    from proxyprune.plan import PrunePlan
    from proxyprune.ranking import Ranking
    from proxyprune.read import trace
    from proxyprune.scoring import Scorer, ScoringContext, score, scorers
    from proxyprune.searching import SearchResult, search
    from proxyprune.solve import make_plan
    from proxyprune.storage import load, save
    from proxyprune.surgery import Surgery

__version__ = "0.1.0"

_HOMES = {
    "trace": "read",
    "score": "scoring",
    "make_plan": "solve",
    "apply_plan": "apply",
    "prune": "flow",
    "save": "storage",
    "load": "storage",
    "scorers": "scoring",
    "search": "searching",
    "compare": "comparing",
    "PrunePlan": "plan",
    "PruneResult": "flow",
    "SearchResult": "searching",
    "Comparison": "comparing",
    "Recovery": "measure",
    "Report": "flow",
    "Surgery": "surgery",
    "Ranking": "ranking",
    "Scorer": "scoring",
    "ScoringContext": "scoring",
    "ModelGraph": "graph",
    "Block": "graph",
    "ChannelGroup": "graph",
    "Member": "graph",
    "carry_optimizer": "carry",
    "carry_state": "carry",
    "ProxyPruneError": "errors",
}
"""Public name -> module; imported on first use, so that `import proxyprune` does not load torch."""

__all__ = [
    "Block",
    "ChannelGroup",
    "Comparison",
    "Member",
    "ModelGraph",
    "ProxyPruneError",
    "PrunePlan",
    "PruneResult",
    "Ranking",
    "Recovery",
    "Report",
    "Scorer",
    "ScoringContext",
    "SearchResult",
    "Surgery",
    "apply_plan",
    "carry_optimizer",
    "carry_state",
    "compare",
    "load",
    "make_plan",
    "prune",
    "save",
    "score",
    "scorers",
    "search",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'proxyprune' has no attribute {name!r}")
    value = getattr(import_module(f"proxyprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
