"""Scorers: what judges the blocks of a network, and how one is found by name."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from proxyprune.scorers.base import NEEDS, Scorer, ScoringContext
from proxyprune.scorers.registry import ScorerInfo, find, scorers

if TYPE_CHECKING:
    from proxyprune.scorers.channels import group_importance
    from proxyprune.scorers.scale import half_saturation
    from proxyprune.scorers.scoring import check_ranking, score

__all__ = [
    "NEEDS",
    "Scorer",
    "ScorerInfo",
    "ScoringContext",
    "check_ranking",
    "find",
    "group_importance",
    "half_saturation",
    "score",
    "scorers",
]

_HOMES = {"score": "scoring", "check_ranking": "scoring", "group_importance": "channels", "half_saturation": "scale"}
"""Name -> module, for what has to load NumPy or torch; listing names must not."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"proxyprune.scorers.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'proxyprune.scorers' has no attribute {name!r}")


class _Package(ModuleType):
    """Lets `proxyprune.scorers()` list the scorers even after an import has put this package in the place of the function."""

    def __call__(self) -> tuple[ScorerInfo, ...]:
        return scorers()


sys.modules[__name__].__class__ = _Package
