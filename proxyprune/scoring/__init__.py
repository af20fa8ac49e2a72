"""Scorers: what judges the blocks of a network, and how one is found by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from proxyprune.scoring.base import NEEDS, Scorer, ScoringContext, model_given
from proxyprune.scoring.brief import Attempt, Brief, NoiseInterval
from proxyprune.scoring.registry import ScorerInfo, find, scorers

if TYPE_CHECKING:
    from proxyprune.scoring.channels import group_importance
    from proxyprune.scoring.request import check_ranking, score
    from proxyprune.scoring.scale import half_saturation

__all__ = [
    "NEEDS",
    "Attempt",
    "Brief",
    "NoiseInterval",
    "Scorer",
    "ScorerInfo",
    "ScoringContext",
    "check_ranking",
    "find",
    "group_importance",
    "half_saturation",
    "model_given",
    "score",
    "scorers",
]

_HOMES = {"score": "request", "check_ranking": "request", "group_importance": "channels", "half_saturation": "scale"}
"""Name -> module, for what has to load NumPy or torch; listing names must not."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"proxyprune.scoring.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'proxyprune.scoring' has no attribute {name!r}")
