"""The result of a scorer: an importance for every block, and optionally for every channel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxyprune.errors import InvalidScoreError
from proxyprune.support.checks import is_number, listed
from proxyprune.support.dataclass_json import from_plain, to_plain
from proxyprune.support.files import write_named
from proxyprune.support.summary import Bar, Summary, SummaryTable
from proxyprune.support.wording import counted

SCHEMA = 1

_MOST_SHOWN = 12
_LEAST_SHOWN = 4
"""Rows of a summary: the most and the least important blocks."""

_ORDER = ("scorer", "seed", "confidence", "scores", "channel_scores", "comparable_channels", "removal_scores", "notes", "unreliable")
"""Fields in the order of the file."""


@dataclass(frozen=True)
class Ranking:
    """Block importances; larger means keep.

    Attributes:
        scores: Importance in [0, 1] for every block of the graph.
        scorer: Name of the scorer that made it.
        confidence: Mean pairwise Kendall tau of repeated queries, or None for a scorer that is asked once.
        channel_scores: Optional importance of each atom of a channel group, by group id; where a group is missing, planning
            orders its atoms by the magnitude of all coupled slices.
        comparable_channels: Whether channel scores of different groups are in one unit and add up (an estimate of the loss that the
            network loses, say), so that planning may weigh channels of one group against those of another.
        removal_scores: Importance in [0, 1] of every block as a whole, which decides the blocks that modes "depth" and "both" remove;
            empty where `scores` decide that too. Channel scores added up over a block do not estimate what the whole block does.
        seed: Seed it was made with.
        notes: Sentences for the reader (how it was made, what to beware of).
        unreliable: Why the ranking should not decide anything (repeated answers agree no better than chance, say), or None. Planning
            refuses such a ranking unless told to accept it.
    """

    scores: Mapping[str, float]
    scorer: str
    confidence: float | None = None
    channel_scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    seed: int = 0
    notes: tuple[str, ...] = ()
    unreliable: str | None = None
    comparable_channels: bool = False
    removal_scores: Mapping[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for block, score in (*self.scores.items(), *self.removal_scores.items()):
            if not is_number(score, 0.0, 1.0):
                raise InvalidScoreError(
                    f"Scorer '{self.scorer}' gave block '{block}' the score {score!r}; expected a finite number in [0, 1]. "
                    "Scale the scores, or drop the blocks that cannot be scored."
                )

    @property
    def order(self) -> tuple[str, ...]:
        """Block ids, most important first; ties stand in the order of `scores` (the graph's order)."""
        return tuple(sorted(self.scores, key=lambda block: -self.scores[block]))

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self, *, every: bool = False) -> Summary:
        """Return the blocks by importance on one screen; `print(ranking)` shows it.

        Args:
            every: All blocks; otherwise the most and the least important ones of a long ranking.
        """
        rows = [(block, str(place), f"{self.scores[block]:.3f}", Bar(self.scores[block])) for place, block in enumerate(self.order, 1)]
        if not every and len(rows) > _MOST_SHOWN + _LEAST_SHOWN + 1:
            left_out = (f"and {len(rows) - _MOST_SHOWN - _LEAST_SHOWN} more", "", "", Bar(0.0))
            rows = [*rows[:_MOST_SHOWN], left_out, *rows[-_LEAST_SHOWN:]]
        confidence = "" if self.confidence is None else f", confidence {self.confidence:.2f}"
        title = f"Ranking of {counted(len(self.scores), 'block')} by {self.scorer}, seed {self.seed}{confidence}; larger means keep"
        unreliable = () if self.unreliable is None else (f"Unreliable: {self.unreliable}",)
        return Summary(title, (SummaryTable(("block", "#", "score", ""), tuple(rows)),), (*unreliable, *self.notes))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the schema number."""
        fields = to_plain(self)
        return {"schema": SCHEMA} | {name: fields[name] for name in _ORDER if name != "removal_scores" or fields[name]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranking:
        """Read what `to_dict` wrote.

        Raises:
            InvalidScoreError: If the data is of another schema, a field is malformed, or a score is not in [0, 1].
        """
        if "removed_blocks" in data and "scores" not in data:
            raise InvalidScoreError("Expected a ranking, found a plan. Give the ranking.json beside it, or apply it with pp.apply_plan.")
        if data.get("schema") != SCHEMA:
            raise InvalidScoreError(f"Expected a ranking with schema {SCHEMA}, found {data.get('schema')!r}. Score the model again.")
        return from_plain(cls, data, _damaged)

    def to_json(self, path: str | Path) -> None:
        """Write the ranking as JSON with stable key order.

        Raises:
            StorageError: If the file cannot be written.
        """
        write_named(path, json.dumps(self.to_dict(), indent=1) + "\n")


def _damaged(problems: list[str]) -> InvalidScoreError:
    return InvalidScoreError(f"The ranking is damaged ({listed(problems, separator='; ')}). Score the model again.")
