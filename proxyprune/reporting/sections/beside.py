"""The section that sets a run of step-adaptive diffusion beside another one."""

from __future__ import annotations

from collections.abc import Iterator

from proxyprune.reporting.page import Column, Part, Row, Section, Table, TableCell
from proxyprune.reporting.read.diffusion_run import DiffusionRun
from proxyprune.reporting.read.read_result import Result
from proxyprune.support.wording import quantity, share

_NONE = "–"


def beside(result: Result, other: Result) -> Section:
    """Return what two runs have in common and what not: figures, experts, loss by interval, settings that differ."""
    assert result.diffusion is not None  # checked where the other run was read
    assert other.diffusion is not None
    pair = (result.diffusion, other.diffusion)
    columns = (Column(""), Column(result.name, True), Column(other.name, True))
    figures = Table("Figures", columns, tuple(_rows(*pair)))
    parts: list[Part] = [figures]
    if differing := tuple(_differing(*pair)):
        parts.append(Table("Settings that differ", (Column("setting"), *columns[1:]), differing))
    lead = "The figures of both runs. The smaller loss of each interval is in bold."
    return Section("beside", f"Beside {other.name}", lead, tuple(parts))


def _rows(first: DiffusionRun, second: DiffusionRun) -> Iterator[Row]:
    pair = (first, second)
    yield _row("intervals", [f"{len(run.ranges)}, {run.interval_method}" if run.ranges else _NONE for run in pair])
    yield _row("budgets", [run.budget_method or _NONE for run in pair])
    yield _row("sampling MACs, of the base", [_NONE if run.mean_share is None else share(run.mean_share, 1.0) for run in pair])
    yield _row("MACs of the base", [_NONE if run.base_macs is None else quantity(run.base_macs) for run in pair])
    yield _row("training MACs", [quantity(run.spent_macs) for run in pair])
    for index in range(max(len(run.ranges) for run in pair)):
        macs = [run.ranges[index].macs if index < len(run.ranges) else None for run in pair]
        yield _row(f"MACs of expert {index}", [_NONE if value is None else quantity(value) for value in macs])
    for index in range(max(len(run.ranges) for run in pair)):
        losses = [_loss(run, index) for run in pair]
        known = [loss for loss in losses if loss is not None]
        if known:
            strong = [len(known) > 1 and loss == min(known) for loss in losses]
            yield _row(f"held-out loss, interval {index}", [_NONE if loss is None else f"{loss:.5g}" for loss in losses], strong)


def _row(name: str, values: list[str], strong: list[bool] | None = None) -> Row:
    marks = strong or [False] * len(values)
    cells = (TableCell(value, tone="strong" if mark else "") for value, mark in zip(values, marks, strict=True))
    return Row((TableCell(name), *cells))


def _loss(run: DiffusionRun, index: int) -> float | None:
    """Mean loss over the bins of an interval, of its expert."""
    found = [entry.expert for entry in run.bins if entry.interval == index and entry.expert is not None]
    return sum(found) / len(found) if found else None


def _differing(first: DiffusionRun, second: DiffusionRun) -> Iterator[Row]:
    for name in sorted({*first.settings, *second.settings}):
        values = [run.settings.get(name, _NONE) for run in (first, second)]
        if values[0] != values[1]:
            yield _row(name, values)
