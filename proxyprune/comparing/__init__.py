"""Which scorer earns its price on a network: every scorer, the same cuts, the same data, the same recovery."""

from __future__ import annotations

from proxyprune.comparing.run import compare
from proxyprune.comparing.values import Case, Cell, Comparison, Scoring, Summary

__all__ = ["Case", "Cell", "Comparison", "Scoring", "Summary", "compare"]
