"""Measurements as tables for a reader: the rounds of a search, and a comparison of scorers."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from proxyprune.comparing import Comparison, Summary
from proxyprune.comparing.values import Spread
from proxyprune.searching import Round, SearchResult
from proxyprune.support.wording import quantity


def rounds_table(result: SearchResult) -> Table:
    """Every round, in order; the best one is marked."""
    table = _table(f"{len(result.rounds)} rounds with {result.proposer}, {result.measurements} of them measured")
    for heading in ("round", "loss", "best so far", "MACs", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("what was proposed", overflow="fold", ratio=1)
    best = float("inf")
    for entry in result.rounds:
        best = min(best, float("inf") if entry.loss is None else entry.loss)
        mark = " ★" if entry.index == result.best_round.index else ""
        table.add_row(
            str(entry.index),
            "" if entry.loss is None else f"{entry.loss:.5f}",
            f"{best:.5f}",
            "" if entry.macs is None else quantity(entry.macs),
            f"{entry.seconds:.1f}",
            f"{entry.verdict}{mark}",
            _said(entry),
        )
    return table


def search_table(result: SearchResult) -> Table:
    """Return what the search won over its start."""
    stopped = {"budget": "measurements spent", "patience": "no improvement", "repeats": "the proposer repeats itself"}[result.stopped]
    table = _table(f"Best: round {result.best_round.index}; stopped: {stopped}")
    for heading in ("", "held-out loss", "MACs"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("unpruned", f"{result.base_loss:.5f}", f"{result.plan.base_macs:,}")
    start = result.rounds[0]
    table.add_row("one shot", _number(start.loss), "" if start.macs is None else f"{start.macs:,}")
    table.add_row("search", _number(result.best_round.loss), f"{result.plan.macs:,}")
    return table


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """One table for each case; mean ± standard deviation over seeds."""
    names = ("scorer", "tau to oracle", "loss after cut", "loss after recovery", "quality", "MACs left", "seconds", "money")
    summaries = comparison.summary()
    measured = {"quality": any(summary.quality is not None for summary in summaries)}
    shown = [name for name in names if measured.get(name, True)]
    for case in comparison.cases:
        table = _table(f"{comparison.model_class}, {case} of {quantity(comparison.base_macs)} MACs; mean ± deviation over seeds")
        for name in shown:
            table.add_column(name, justify="left" if name == "scorer" else "right")
        rows = [summary for summary in summaries if summary.case == case]
        for summary in sorted(rows, key=_recovered_first):
            cells = dict(zip(names, _summary_row(summary, comparison.base_macs), strict=True))
            table.add_row(*(cells[name] for name in shown))
        yield table
    base = _table("Unpruned")
    for heading in ("seed", "loss", "loss after the same training"):
        base.add_column(heading, justify="right")
    for cell in comparison.base:
        base.add_row(str(cell.seed), _number(cell.loss), _number(cell.recovered_loss))
    yield base
    errors = {(summary.scorer, error) for summary in summaries for error in summary.errors}
    if errors:
        failed = _table("What failed")
        failed.add_column("scorer", no_wrap=True)
        failed.add_column("why", overflow="fold", ratio=1)
        for scorer, error in sorted(errors):
            failed.add_row(scorer, error)
        yield failed


def _recovered_first(summary: Summary) -> tuple[float, str]:
    spread = summary.recovered_loss or summary.loss
    return (float("inf") if spread is None else spread.mean, summary.scorer)


def _summary_row(summary: Summary, base_macs: int) -> tuple[str, ...]:
    return (
        summary.scorer,
        _spread(summary.tau, 2),
        _spread(summary.loss, 4),
        _spread(summary.recovered_loss, 4),
        _spread(summary.quality, 4),
        "" if summary.macs is None else f"{summary.macs.mean / base_macs:.1%}",
        _spread(summary.scoring_seconds, 2),
        "" if summary.dollars is None else f"${summary.dollars:.4f}",
    )


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "–"
    return f"{spread.mean:.{digits}f}" + (f" ± {spread.deviation:.{digits}f}" if spread.count > 1 else "")


def _said(entry: Round) -> str:
    if entry.duplicate_of is not None:
        return f"the same plan as round {entry.duplicate_of}"
    return entry.error or (entry.ranking.notes[0] if entry.ranking.notes else entry.ranking.scorer)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def _table(title: str) -> Table:
    title = f"\n{title}"  # a line between tables
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
