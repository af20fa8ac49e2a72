"""Synaptic flow: how much of what goes in at the input can come out at the output by way of a channel; no data, no labels."""

from __future__ import annotations

from proxyprune_synflow.flow import SynFlowScorer

__all__ = ["SynFlowScorer"]
