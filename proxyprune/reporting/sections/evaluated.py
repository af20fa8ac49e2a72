"""The section about how good the images of pipelines are, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from proxyprune.reporting.draw.charts import Series, line_chart
from proxyprune.reporting.draw.svg import Named
from proxyprune.reporting.page import Column, Illustration, Part, Remarks, Row, Section, Table, TableCell
from proxyprune.reporting.read.evaluation_record import EvaluationRecord
from proxyprune.reporting.read.read_result import Result
from proxyprune.support.wording import counted, quantity, share

_COLOURS = 6


def evaluated(result: Result) -> Section | None:
    """Return the figures of every evaluation, and the frontier where there are several."""
    found = result.evaluations
    if not found:
        return None
    first = found[0]
    compared = f"{first.images:,} images each, seed {first.seed}, compared with {first.reference} by the features {first.features}"
    lead = f"{compared}. Smaller distances are better."
    notes = tuple(dict.fromkeys(note for entry in found for note in entry.notes))
    parts: list[Part] = [*_frontier(found), _table(found), *((Remarks(notes),) if notes else ())]
    return Section("evaluation", "Quality of the images", lead, tuple(parts))


def _frontier(found: Sequence[EvaluationRecord]) -> list[Part]:
    if len(found) < 2:
        return []
    names = tuple(dict.fromkeys(entry.pipeline for entry in found))
    series = []
    for number, name in enumerate(names):
        points = sorted((float(entry.macs), entry.frechet.value) for entry in found if entry.pipeline == name)
        colour = number % _COLOURS
        series += [Series("", points, f"dots fill-{colour} line-{colour}"), Series(_short(name), points, f"line-{colour}")]
    said = f"Fréchet distance against the MACs of one image, {counted(len(names), 'pipeline')}, {counted(len(found), 'evaluation')}."
    drawing = line_chart(Named("frontier-chart", "Distance by compute", said), series, ("MACs of one image", "Fréchet distance"))
    return [Illustration("Fréchet distance against the compute of sampling; one point for each number of steps", drawing)]


def _short(name: str, most: int = 15) -> str:
    """Return the end of a path, as far as it fits beside a chart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _table(found: Sequence[EvaluationRecord]) -> Table:
    numbers = ("steps", "Fréchet", "95 % interval", "KID", "precision", "recall", "MACs", "of the base", "ms per image", "parameters")
    columns = (Column("pipeline"), Column("sampler"), *(Column(name, True) for name in numbers))
    best = min(entry.frechet.value for entry in found)
    rows = tuple(
        Row(
            (
                TableCell(entry.pipeline or "this pipeline"),
                TableCell(entry.sampler.removesuffix("Scheduler") or "–", tone="quiet"),
                TableCell(str(entry.steps)),
                TableCell(f"{entry.frechet.value:.3f}", tone="strong" if entry.frechet.value == best and len(found) > 1 else ""),
                TableCell(f"{entry.frechet.low:.3f} to {entry.frechet.high:.3f}"),
                TableCell(f"{entry.kid.value:.4f}"),
                TableCell("–" if entry.precision is None else f"{entry.precision:.3f}"),
                TableCell("–" if entry.recall is None else f"{entry.recall:.3f}"),
                TableCell(quantity(entry.macs)),
                TableCell("–" if entry.relative_macs is None else share(entry.relative_macs, 1.0)),
                TableCell("–" if entry.seconds is None else f"{1000 * entry.seconds:.1f}"),
                TableCell("–" if entry.params is None else quantity(entry.params)),
            )
        )
        for entry in found
    )
    return Table(f"{counted(len(found), 'evaluation')}", columns, rows)
