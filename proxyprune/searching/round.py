"""One round of a search: what was proposed, what came of it, and how it is written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.plan import PrunePlan
from proxyprune.pruning.advice import Advice
from proxyprune.scoring import Attempt
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.dataclass_json import from_plain, to_plain

START, BETTER, WORSE, DUPLICATE, FAILED = "start", "better", "worse", "duplicate", "failed"
VERDICTS: Mapping[str, str] = {
    START: "the one-shot ranking that the search begins with",
    BETTER: "the best so far; the next proposals start from here",
    WORSE: "measured, and rolled back",
    DUPLICATE: "the same plan as an earlier round; not measured again, and not counted as a measurement",
    FAILED: "no usable proposal, no network, or a loss that is not finite; it counts as a measurement",
}
"""Verdict -> what it means."""


@dataclass(frozen=True)
class Round:
    """One proposal and its measurement.

    Attributes:
        index: Place in the search, from 0 (the start).
        ranking: What was proposed (for a round without a proposal: the best so far), without channel scores: the plan has the channels.
        plan: What was cut, or None when no plan or no network came of it.
        key: Identifies what the plan keeps; equal for duplicates.
        kept: Share of its MACs that each block kept.
        loss: Held-out loss, after the recovery when there is one; None when there is none.
        verdict: A key of `VERDICTS`.
        seconds: Wall time of proposing, planning and measuring.
        duplicate_of: The round with the same plan, or None.
        error: Why the round failed, or None.
        known: Number of rounds that the proposal followed from.
        advice: Limits that were proposed with the ranking, and that the plan follows.
        formula: The formula that the ranking comes from, or None.
        exact_widths: Widths in channels that were proposed for channel groups, and that the plan has.
    """

    index: int
    ranking: Ranking = field(repr=False)
    plan: PrunePlan | None = field(repr=False)
    key: str
    kept: Mapping[str, float] = field(repr=False)
    loss: float | None
    verdict: str
    seconds: float
    duplicate_of: int | None = None
    error: str | None = None
    known: int = 0
    advice: tuple[Advice, ...] = ()
    formula: str | None = None
    exact_widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """True if the round counts as a measurement."""
        return self.verdict != DUPLICATE

    @property
    def accepted(self) -> bool:
        """True if it was the best of its time."""
        return self.verdict in (START, BETTER) and self.loss is not None

    @property
    def macs(self) -> int | None:
        """MACs of the pruned network."""
        return None if self.plan is None else self.plan.macs

    def attempt(self) -> Attempt | None:
        """Return the record of it for scorers, or None without a measurement."""
        if not self.measured or self.plan is None or self.loss is None:
            return None
        return Attempt(dict(self.ranking.scores), dict(self.kept), self.plan.macs, self.loss, self.accepted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        widths = None if self.plan is None else {group: list(pair) for group, pair in self.plan.widths.items()}
        return to_plain(self) | {"macs": self.macs, "widths": widths}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Round:
        """Read what `to_dict` wrote."""
        return from_plain(cls, data)


def key_of(plan: PrunePlan) -> str:
    """Return a hash of what a plan keeps, the same for every proposer."""
    content = [{group: list(kept) for group, kept in sorted(plan.kept.items())}, sorted(plan.removed_blocks)]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()[:16]


def kept_shares(graph: ModelGraph, plan: PrunePlan) -> dict[str, float]:
    """Share of its MACs that each block keeps; a block without MACs keeps its share 1 unless it is removed."""
    if plan.fingerprint != graph.fingerprint:  # pinned further on the way; the shares of the graph's own groups still hold
        return {}
    before = graph.cost.block_macs(graph.cost.full)
    after = graph.cost.block_macs(plan.atoms(graph), plan.removed_blocks)
    return {block: round(after[block] / macs, 6) if macs else float(block not in plan.removed_blocks) for block, macs in before.items()}
