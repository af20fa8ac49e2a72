"""The cost of training, in multiply-accumulates, against that of one full-size model.

A backward pass is counted as two forward passes, so a training image costs three. Everything that a run computes with a network is entered:
training, teachers, scoring, measuring, trials and sample grids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxyprune.errors import ComputeError
from proxyprune.support.dataclass_json import from_plain, to_plain

TRAINING_PASSES = 3
"""Forward passes that one training image counts as: forward, and backward at twice the price."""


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        stage: "base", "intervals", "weights" (of the loss), "budgets" or "expert".
        interval: Index of the expert, or None.
        what: "training", "teacher", "scoring", "measuring" or "samples".
        images: Images (or passes of one image) that were run.
        macs: What that cost.
    """

    stage: str
    interval: int | None
    what: str
    images: int
    macs: int


@dataclass(frozen=True)
class Ledger:
    """All entries, and the limit.

    Attributes:
        limit_macs: Training MACs of the full-size reference; None sets no limit.
        entries: In the order of spending.
    """

    limit_macs: int | None = None
    entries: tuple[Entry, ...] = ()

    @property
    def spent_macs(self) -> int:
        """Sum of all entries."""
        return sum(entry.macs for entry in self.entries)

    @property
    def share(self) -> float | None:
        """Spent, as a share of the limit."""
        return self.spent_macs / self.limit_macs if self.limit_macs else None

    def add(self, *entries: Entry) -> Ledger:
        """Return a ledger with more entries; those without cost are left out.

        Args:
            entries: What is about to be spent.

        Raises:
            ComputeError: If that would exceed the limit.
        """
        grown = Ledger(self.limit_macs, (*self.entries, *(entry for entry in entries if entry.macs)))
        if self.limit_macs is not None and grown.spent_macs > self.limit_macs:
            asked = ", ".join(f"{entry.stage} {entry.what}" for entry in entries)
            raise ComputeError(
                f"The ledger allows {self.limit_macs:,} training MACs, {self.spent_macs:,} are spent, and {asked} would bring that to "
                f"{grown.spent_macs:,}. In a new folder (--base-from reuses a base), "
                "measure with fewer images or raise compute.reference_steps."
            )
        return grown

    def by_stage(self) -> dict[str, int]:
        """MACs by "stage", experts by "expert N", and what they were spent on: "expert 2 scoring"."""
        sums: dict[str, int] = {}
        for entry in self.entries:
            name = entry.stage if entry.interval is None else f"{entry.stage} {entry.interval}"
            key = f"{name} {entry.what}"
            sums[key] = sums.get(key, 0) + entry.macs
        return sums

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        derived = {"spent_macs": self.spent_macs, "share": self.share}
        return {"schema": 1, "limit_macs": self.limit_macs, **derived, **to_plain(self, omit=("limit_macs",))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ledger:
        """Read what `to_dict` wrote."""
        return from_plain(cls, data)

    @classmethod
    def merged(cls, limit_macs: int | None, parts: Iterable[Ledger]) -> Ledger:
        """One ledger of what several jobs spent; the limit is reported, not enforced, because it is spent already.

        Args:
            limit_macs: Training MACs that all of them together may cost, or None.
            parts: A ledger of each job.
        """
        return cls(limit_macs, tuple(entry for part in parts for entry in part.entries))


def training_macs(macs: int, images: int) -> int:
    """Cost of training on so many images."""
    return TRAINING_PASSES * macs * images


def affordable_steps(budget_macs: int, macs: int, batch_size: int, teacher_macs: int = 0) -> int:
    """Optimizer steps that a budget pays for.

    Args:
        budget_macs: What may be spent.
        macs: MACs of the trained network.
        batch_size: Images of one step.
        teacher_macs: MACs of a teacher that runs forward on every image.
    """
    return budget_macs // (batch_size * (TRAINING_PASSES * macs + teacher_macs))


def split_allowance(total_macs: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Divide compute by weights, to the last MAC."""
    scale = sum(weights)
    edges = [int(total_macs * part / scale) for part in itertools.accumulate(weights, initial=0.0)]
    return tuple(b - a for a, b in itertools.pairwise(edges))
