"""Importance from activations: how far a block turns its input (block influence), and how large its products are (Wanda)."""

from __future__ import annotations

from proxyprune_activation.influence import BlockInfluenceScorer
from proxyprune_activation.wanda import WandaScorer

__all__ = ["BlockInfluenceScorer", "WandaScorer"]
