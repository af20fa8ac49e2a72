"""The sections about measurements: rounds of a search, scorers compared, time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from proxyprune.reporting.draw.charts import DotRow, Series, dot_plot, line_chart, share_bar
from proxyprune.reporting.draw.svg import Named
from proxyprune.reporting.page import Column, Illustration, Part, Remarks, Row, Section, Table, TableCell
from proxyprune.reporting.read.read_result import Result
from proxyprune.reporting.read.result_records import CellRecord, ComparisonRecord, RoundRecord, SearchRecord, unique
from proxyprune.support.wording import counted, figure, quantity, seconds, share

_STOPPED = {
    "budget": "all measurements were used",
    "patience": "nothing improved for several rounds",
    "repeats": "the proposer repeated itself",
}
_TONES = {"better": "good", "start": "strong", "failed": "bad"}


def search(result: Result) -> Section | None:
    """Show the rounds, and the best so far."""
    found = result.search
    if found is None or not found.rounds:
        return None
    parts: list[Part] = []
    losses = [(float(entry.index), entry.loss) for entry in found.rounds if entry.loss is not None]
    if losses:
        parts.append(_search_chart(found, losses))
    numbers = (Column(name, True) for name in ("round", "loss", "best so far", "MACs", "time"))
    columns = (*numbers, Column("verdict"), Column("remark"))
    parts.append(Table(f"{counted(len(found.rounds), 'round')}, {found.measured} of them measured", columns, tuple(_round_rows(found))))
    stopped = f" It ended because {_STOPPED[found.stopped]}." if found.stopped in _STOPPED else ""
    lead = f"In each round, a proposed ranking is planned, cut and measured on held-out batches. A lower loss is better.{stopped}"
    return Section("search", "The search", lead, tuple(parts))


def _search_chart(found: SearchRecord, losses: Sequence[tuple[float, float]]) -> Illustration:
    best: list[tuple[float, float]] = []
    for index, loss in losses:
        best.append((index, min(loss, best[-1][1]) if best else loss))
    levels = {} if found.base_loss is None else {"unpruned": found.base_loss}
    series = [Series("", losses, "dots"), Series("best so far", best, "line-0", step=True)]
    said = f"The loss of {len(losses)} rounds. The first is {losses[0][1]:.5g}, the best {best[-1][1]:.5g}."
    drawing = line_chart(Named("search-chart", "Held-out loss by round", said), series, ("round", "held-out loss"), levels)
    return Illustration("Held-out loss by round, and the best so far", drawing)


def _round_rows(found: SearchRecord) -> Iterator[Row]:
    lowest = float("inf")
    for entry in found.rounds:
        lowest = min(lowest, float("inf") if entry.loss is None else entry.loss)
        chosen = found.best is not None and entry.index == found.best.index
        yield Row(
            (
                TableCell(str(entry.index), tone="quiet"),
                TableCell(figure(entry.loss, 5), tone="strong" if chosen else ""),
                TableCell("–" if lowest == float("inf") else figure(lowest, 5), tone="quiet"),
                TableCell("–" if entry.macs is None else quantity(entry.macs)),
                TableCell(seconds(entry.seconds), tone="quiet"),
                TableCell(f"{entry.verdict} ★" if chosen else entry.verdict, tone=_TONES.get(entry.verdict, "quiet")),
                TableCell(_remark(entry), tone="quiet"),
            )
        )


def _remark(entry: RoundRecord) -> str:
    if entry.error is not None:
        return entry.error
    return f"the same plan as round {entry.duplicate_of}" if entry.duplicate_of is not None else " ".join(entry.notes[:1])


def comparison(result: Result) -> tuple[Section, ...]:
    """Scorers by case, with their spread over seeds."""
    found = result.comparison
    if found is None:
        return ()
    sections = [_agreement(found), *(_case(found, case, number) for number, case in enumerate(found.cases, start=1)), _errors(found)]
    return tuple(section for section in sections if section is not None)


def _agreement(found: ComparisonRecord) -> Section | None:
    rows: list[Row] = []
    spreads: list[DotRow] = []
    for name in found.scorers:
        scorings = [entry for entry in found.scorings if entry.scorer == name]
        taus = [entry.tau for entry in scorings if entry.tau is not None]
        spent = [entry.dollars for entry in scorings if entry.dollars is not None]
        took = [entry.seconds for entry in scorings if entry.seconds is not None]
        if taus:
            spreads.append(_spread(name, taus))
        money = f"${sum(spent):.4f}" if spent else "none"
        rows.append(
            Row(
                (
                    TableCell(name),
                    TableCell(_mean(taus, ".2f")),
                    TableCell(seconds(statistics.fmean(took)) if took else "–"),
                    TableCell(money),
                    TableCell(str(len(scorings))),
                )
            )
        )
    if not found.scorings:
        return None
    parts: list[Part] = []
    if spreads:
        said = "; ".join(f"{entry.label}: {entry.mean:.2f}" for entry in spreads)
        plot = dot_plot(
            Named("agreement-chart", "Agreement with the oracle", said), spreads, "Kendall tau to the ablation oracle", ("chance", 0.0)
        )
        parts.append(
            Illustration(
                "Kendall's tau to measured ablation: a dot is a seed, the bar the mean, the line one standard deviation",
                plot,
            )
        )
    columns = (
        Column("scorer"),
        Column("tau to the oracle", True),
        Column("time to score", True),
        Column("money", True),
        Column("seeds", True),
    )
    parts.append(Table("Agreement with the ablation oracle, and what a ranking costs", columns, tuple(rows)))
    lead = "The oracle removes one block at a time and measures the loss. A tau of 1 is the same order, 0 is chance."
    return Section("agreement", "Agreement with the oracle", lead, tuple(parts))


def _case(found: ComparisonRecord, case: str, number: int) -> Section:
    cells = [cell for cell in found.cells if cell.case == case]
    recovered = any(cell.recovered_loss is not None for cell in cells)
    spreads = []
    for name in unique(cell.scorer for cell in cells):
        values = _values(cells, name, "recovered_loss" if recovered else "loss")
        if values:
            spreads.append(_spread(name, values))
    spreads.sort(key=lambda entry: entry.mean)
    base = [_loss(cell, recovered) for cell in found.base]
    known = [loss for loss in base if loss is not None]
    what = "held-out loss after recovery" if recovered else "held-out loss after the cut"
    parts: list[Part] = []
    if spreads:
        said = "; ".join(f"{entry.label}: {entry.mean:.4g}" for entry in spreads)
        level = ("unpruned", statistics.fmean(known)) if known else None
        parts.append(
            Illustration(
                f"{what.capitalize()}, best first; a dot is one seed", dot_plot(Named(f"case-{number}", what, said), spreads, what, level)
            )
        )
    order = unique([*(entry.label for entry in spreads), *(cell.scorer for cell in cells)])
    parts.append(
        Table(f"{case}: mean ± deviation over seeds", _case_columns(cells), tuple(_case_row(found, cells, name) for name in order))
    )
    return Section(
        f"case-{number}",
        f"Cut to {case}",
        "Every scorer gets the same cut, the same data and the same recovery. A lower loss is better.",
        tuple(parts),
    )


def _loss(cell: CellRecord, recovered: bool) -> float | None:
    return cell.recovered_loss if recovered else cell.loss


def _case_columns(cells: Sequence[CellRecord]) -> tuple[Column, ...]:
    names = ["loss after the cut", "loss after recovery"] + (["quality"] if any(cell.quality is not None for cell in cells) else [])
    return (Column("scorer"), *(Column(name, True) for name in names), Column("MACs left", True), Column("seeds", True))


def _case_row(found: ComparisonRecord, cells: Sequence[CellRecord], name: str) -> Row:
    own = [cell for cell in cells if cell.scorer == name]
    shown = ["loss", "recovered_loss"] + (["quality"] if any(cell.quality is not None for cell in cells) else [])
    macs = [cell.macs for cell in own if cell.macs is not None]
    left = share(statistics.fmean(macs), found.base_macs) if macs else "–"
    return Row(
        (TableCell(name), *(TableCell(_mean(_values(cells, name, entry))) for entry in shown), TableCell(left), TableCell(str(len(own))))
    )


def _values(cells: Sequence[CellRecord], scorer: str, name: str) -> list[float]:
    return [value for cell in cells if cell.scorer == scorer and (value := getattr(cell, name)) is not None]


def _errors(found: ComparisonRecord) -> Section | None:
    pairs = [(entry.scorer, entry.error) for entry in found.scorings] + [(cell.scorer, cell.error) for cell in found.cells]
    said = unique(f"{scorer}: {error}" for scorer, error in pairs if error is not None)
    return Section("failed", "Failures", "", (Remarks(said, "warning"),)) if said else None


def _spread(name: str, values: Sequence[float]) -> DotRow:
    return DotRow(name, values, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _mean(values: Sequence[float], form: str = ".4g") -> str:
    if not values:
        return "–"
    spread = _spread("", values)
    return f"{spread.mean:{form}} ± {spread.deviation:.2g}" if len(values) > 1 else f"{spread.mean:{form}}"


def time(result: Result) -> Section | None:
    """Measured time of a run before and after, if it was measured."""
    if result.figures is None or result.figures.seconds is None:
        return None
    before, after = result.figures.seconds
    cells = (
        TableCell("one run on the example inputs"),
        TableCell(seconds(before)),
        TableCell(seconds(after)),
        TableCell(share(after, before), share_bar(after / before if before else 0.0)),
    )
    macs = (TableCell("MACs, for comparison"), TableCell(quantity(result.figures.base_macs)), TableCell(quantity(result.figures.macs)))
    ratio = result.figures.macs / result.figures.base_macs if result.figures.base_macs else 0.0
    columns = (Column(""), Column("before", True), Column("after", True), Column("left", True))
    rows = (Row(cells), Row((*macs, TableCell(share(result.figures.macs, result.figures.base_macs), share_bar(ratio)))))
    return Section(
        "time",
        "Measured time",
        "Time does not follow MACs exactly.",
        (Table("Time and MACs", columns, rows),),
    )
