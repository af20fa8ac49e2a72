"""The parts of a comparison of scorers, as frozen values with a JSON form."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.budget import Target
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.dataclass_json import from_plain, to_plain

SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """One way to cut: a mode and a target."""

    mode: str
    target: Target

    def __str__(self) -> str:
        return f"{self.mode} {self.target}"


@dataclass(frozen=True)
class Scoring:
    """One ranking by one scorer.

    Attributes:
        scorer: Name of the arm.
        seed: Seed of the ranking; it also decides which calibration batches the scorer saw.
        seconds: Wall time of scoring.
        dollars: Money spent on it; None for a scorer that asks nobody for money.
        tau: Kendall's tau-b to the ablation oracle on the held-out batches; None when the ranking is constant, or there is none.
        ranking: The ranking, or None after an error.
        error: Why there is no ranking, or None.
    """

    scorer: str
    seed: int
    seconds: float
    dollars: float | None
    tau: float | None
    ranking: Ranking | None = field(repr=False)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scoring:
        """Read what `to_dict` wrote."""
        return from_plain(cls, data)


@dataclass(frozen=True)
class Cell:
    """One network, cut by one ranking and measured.

    Attributes:
        scorer: Name of the arm.
        mode: "width", "depth" or "both".
        target: The budget as it was asked for.
        seed: Seed of the ranking and of the recovery.
        macs: MACs of the pruned network, or None after an error.
        params: Its parameters.
        loss: Held-out loss right after the cut; None when it is not finite, or after an error.
        recovered_loss: Held-out loss after the recovery; None without one.
        quality: The caller's own measure after the recovery (right after the cut without one), or None.
        seconds: Wall time of planning, cutting and measuring.
        error: Why there is no measurement, or None.
    """

    scorer: str
    mode: str
    target: Target
    seed: int
    macs: int | None = None
    params: int | None = None
    loss: float | None = None
    recovered_loss: float | None = None
    quality: float | None = None
    seconds: float = 0.0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """Read what `to_dict` wrote."""
        return from_plain(cls, data)


@dataclass(frozen=True)
class Spread:
    """Mean, smallest, largest and standard deviation (0 for one value) over seeds."""

    mean: float
    low: float
    high: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None when there is no value at all; values that are None are left out, which `count` shows."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        return cls(statistics.fmean(found), min(found), max(found), deviation, len(found))


@dataclass(frozen=True)
class Summary:
    """One scorer in one case, over all seeds.

    Attributes:
        scorer: Name of the arm.
        case: Mode and target.
        tau: Agreement with the oracle.
        loss: Right after the cut.
        recovered_loss: After the recovery.
        quality: The caller's own measure.
        scoring_seconds: Wall time of scoring.
        dollars: Money spent on scoring, all seeds together; None for a local scorer.
        macs: MACs of the pruned networks.
        errors: What went wrong, each message once.
    """

    scorer: str
    case: Case
    tau: Spread | None
    loss: Spread | None
    recovered_loss: Spread | None
    quality: Spread | None
    scoring_seconds: Spread | None
    dollars: float | None
    macs: Spread | None
    errors: tuple[str, ...]

    @classmethod
    def of(cls, scorer: str, case: Case, scorings: Iterable[Scoring], cells: Iterable[Cell]) -> Summary:
        """Summarise the measurements of one scorer in one case."""
        scorings, cells = tuple(scorings), tuple(cells)
        spent = [scoring.dollars for scoring in scorings if scoring.dollars is not None]
        errors = [*(scoring.error for scoring in scorings), *(cell.error for cell in cells)]
        return cls(
            scorer=scorer,
            case=case,
            tau=Spread.of(scoring.tau for scoring in scorings),
            loss=Spread.of(cell.loss for cell in cells),
            recovered_loss=Spread.of(cell.recovered_loss for cell in cells),
            quality=Spread.of(cell.quality for cell in cells),
            scoring_seconds=Spread.of(scoring.seconds for scoring in scorings),
            dollars=sum(spent) if spent else None,
            macs=Spread.of(cell.macs for cell in cells),
            errors=tuple(dict.fromkeys(error for error in errors if error is not None)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_plain(self)


@dataclass(frozen=True)
class Comparison:
    """All measurements of one network.

    Attributes:
        model_class: Name of the network's class.
        fingerprint: Of its structure.
        base_macs: MACs of the unpruned network.
        base: The unpruned network, measured (and trained further) like the others; one cell a seed.
        oracle: The ablation ranking on the held-out batches.
        scorings: One for every scorer and seed.
        cells: One for every scorer, case and seed.
        settings: What was asked for, as plain JSON values.
        notes: Sentences for the reader.
        graph: The traced network.
    """

    model_class: str
    fingerprint: str
    base_macs: int
    base: tuple[Cell, ...]
    oracle: Ranking = field(repr=False)
    scorings: tuple[Scoring, ...] = field(repr=False)
    cells: tuple[Cell, ...] = field(repr=False)
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    graph: ModelGraph | None = field(default=None, repr=False)

    @property
    def cases(self) -> tuple[Case, ...]:
        """In the order in which they were asked for."""
        return tuple(dict.fromkeys(Case(cell.mode, cell.target) for cell in self.cells))

    def summary(self) -> tuple[Summary, ...]:
        """Over seeds; by case, then by scorer in the order in which they were given."""
        return summarise(self.scorings, self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the schema number; rankings without their channel scores, which are large."""
        return {
            "schema": SCHEMA,
            "model_class": self.model_class,
            "fingerprint": self.fingerprint,
            "base_macs": self.base_macs,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "oracle": dict(self.oracle.scores),
            "base": [cell.to_dict() for cell in self.base],
            "scorings": [_brief(scoring) for scoring in self.scorings],
            "cells": [cell.to_dict() for cell in self.cells],
            "summary": [summary.to_dict() for summary in self.summary()],
        }


def summarise(scorings: Iterable[Scoring], cells: Iterable[Cell]) -> tuple[Summary, ...]:
    """One summary for each case and scorer, in the order in which they first come."""
    scorings, cells = tuple(scorings), tuple(cells)
    cases = dict.fromkeys(Case(cell.mode, cell.target) for cell in cells)
    names = dict.fromkeys([*(scoring.scorer for scoring in scorings), *(cell.scorer for cell in cells)])
    return tuple(
        Summary.of(
            name,
            case,
            [scoring for scoring in scorings if scoring.scorer == name],
            [cell for cell in cells if cell.scorer == name and Case(cell.mode, cell.target) == case],
        )
        for case in cases
        for name in names
    )


def _brief(scoring: Scoring) -> dict[str, Any]:
    ranking = scoring.ranking
    told = None if ranking is None else {key: value for key, value in ranking.to_dict().items() if key != "channel_scores"}
    return {**scoring.to_dict(), "ranking": told}
