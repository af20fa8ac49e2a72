"""The sections about a run of step-adaptive diffusion: intervals and budgets, the ledger, losses, sample grids."""

from __future__ import annotations

from collections.abc import Iterator

from proxyprune.reporting.draw.charts import Series, interval_strip, line_chart, share_bar, stacked_bar
from proxyprune.reporting.draw.svg import Named
from proxyprune.reporting.page import Column, Gallery, Illustration, Part, Row, Section, Table, TableCell
from proxyprune.reporting.read.diffusion_run import DiffusionRun, LoggedLoss, Range
from proxyprune.reporting.read.read_result import Result
from proxyprune.support.wording import counted, quantity, share, tenths

_MOST_POINTS = 240


def diffusion(result: Result) -> Iterator[Section]:
    """Yield what the run has so far; nothing for other results."""
    run = result.diffusion
    if run is None:
        return
    if run.ranges:
        yield _intervals(run)
    if any(entry.tried for entry in run.ranges):
        yield _trials(run)
    if run.ledger:
        yield _ledger(run)
    if run.losses:
        yield _losses(run)
    if run.bins:
        yield _by_snr(run)
    if run.pictures:
        pictures = tuple((entry.label, entry.uri) for entry in run.pictures)
        yield Section("samples", "Samples", "The latest grid of each stage.", (Gallery(pictures),))


def _intervals(run: DiffusionRun) -> Section:
    strips = [
        (f"interval {entry.index}", _decibels(entry), float(entry.last - entry.first + 1), _share(run, entry) or 0.0)
        for entry in run.ranges
    ]
    said = "; ".join(f"{name}: {below}, {high:.0%} of the MACs" for name, below, _, high in strips)
    drawing = interval_strip(Named("intervals-chart", "Intervals and their budgets", said), strips, "MACs of the expert, share of the base")
    numbers = (Column(name, True) for name in ("sampler steps", "budget", "MACs", "parameters", "training steps"))
    columns = (Column("interval", True), Column("SNR"), Column("timesteps"), *numbers)
    rows = tuple(_interval_row(run, entry) for entry in run.ranges)
    table = Table(f"{counted(len(rows), 'interval')} ({run.interval_method}), budgets: {run.budget_method}", columns, rows)
    lead = (
        "The noise levels from clean (left) to pure noise (right) are split by signal-to-noise ratio. Each interval has its own denoiser."
    )
    curve = (_curve(run),) if run.curve else ()
    parts = (*curve, Illustration("Size and timesteps of each expert", drawing), table)
    return Section("intervals", "Intervals and budgets", lead, parts)


def _curve(run: DiffusionRun) -> Illustration:
    """SNR by timestep, in the colour of the interval; neighbours share the point where one ends."""
    series = []
    for entry in run.ranges:
        points = [point for point in run.curve if max(0, entry.first - 1) <= point[0] <= entry.last]
        if points:
            series.append(Series(f"interval {entry.index}", points, f"line-{entry.index % 6}"))
    said = (
        f"Signal-to-noise ratio from {run.curve[0][1]:.1f} to {run.curve[-1][1]:.1f} dB, split into {counted(len(run.ranges), 'interval')}."
    )
    named = Named("snr-chart", "Signal-to-noise ratio by timestep", said)
    return Illustration("Signal-to-noise ratio by timestep", line_chart(named, series, ("timestep, 0 is clean", "dB")))


def _by_snr(run: DiffusionRun) -> Section:
    shown = [entry for entry in run.bins if entry.snr_db is not None]
    series = [Series("base", sorted((entry.snr_db or 0.0, entry.base) for entry in shown), "line-base")] if shown else []
    for index in sorted({entry.interval for entry in shown if entry.expert is not None}):
        own = sorted((entry.snr_db or 0.0, entry.expert or 0.0) for entry in shown if entry.interval == index)
        series.append(Series(f"expert {index}", own, f"line-{index % 6}"))
    compared = [entry for entry in run.bins if entry.expert is not None]
    better = sum((entry.expert or 0.0) < entry.base for entry in compared)
    said = f"In {better} of {counted(len(compared), 'bin')} the expert's loss is below the base's." if compared else "The base alone."
    columns = (Column("interval", True), Column("timesteps"), *(Column(name, True) for name in ("SNR in dB", "base", "expert", "change")))
    rows = tuple(
        Row(
            (
                TableCell(str(entry.interval)),
                TableCell(f"{entry.first} to {entry.last}"),
                TableCell("no signal" if entry.snr_db is None else f"{entry.snr_db:.1f}"),
                TableCell(f"{entry.base:.4g}"),
                TableCell("–" if entry.expert is None else f"{entry.expert:.4g}"),
                TableCell(f"{100 * (entry.expert / entry.base - 1.0):+.1f} %" if entry.expert is not None and entry.base else "–"),
            )
        )
        for entry in run.bins
    )
    lead = f"Both were measured on the same held-out images, noise and timesteps. {said} This is evaluation, so it is not in the ledger."
    drawn: tuple[Part, ...] = ()
    if series:
        named = Named("snr-loss-chart", "Held-out loss by SNR", said)
        drawing = line_chart(named, series, ("SNR in dB, clean to the right", "loss"))
        drawn = (Illustration("Held-out loss by signal-to-noise ratio", drawing),)
    return Section("by-snr", "Loss by noise level", lead, (*drawn, Table("Base and expert", columns, rows)))


def _interval_row(run: DiffusionRun, entry: Range) -> Row:
    part = _share(run, entry)
    return Row(
        (
            TableCell(str(entry.index)),
            TableCell(_decibels(entry)),
            TableCell(f"{entry.first} to {entry.last}"),
            TableCell("–" if entry.sampler_steps is None else str(entry.sampler_steps)),
            TableCell("–" if entry.budget is None else share(entry.budget, 1.0), None if part is None else share_bar(part)),
            TableCell("not trained yet" if entry.macs is None else quantity(entry.macs)),
            TableCell("–" if entry.params is None else quantity(entry.params)),
            TableCell("–" if entry.steps is None else f"{entry.steps:,}"),
        )
    )


def _share(run: DiffusionRun, entry: Range) -> float | None:
    return entry.macs / run.base_macs if entry.macs is not None and run.base_macs else entry.budget


def _decibels(entry: Range) -> str:
    low, high = entry.low_snr_db, entry.high_snr_db
    if low is None:
        return "every SNR" if high is None else f"below {tenths(high)} dB"
    return f"above {tenths(low)} dB" if high is None else f"{tenths(low)} to {tenths(high)} dB"


def _trials(run: DiffusionRun) -> Section:
    tried, series = [entry for entry in run.ranges if entry.tried], []
    for entry in tried:
        colour = entry.index % 6
        series.append(Series("", sorted((size.fraction, size.value) for size in entry.tried), f"dots fill-{colour} line-{colour}"))
        line = sorted((size.fraction, size.value) for size in entry.remaining)
        series.append(Series(f"interval {entry.index}", line, f"line-{colour}"))
    named = Named("trials-chart", "Damage by size", f"Damage in {len(tried)} intervals at several sizes, measured and expected.")
    drawing = line_chart(named, series, ("share of the base's MACs", "log ratio of losses"))
    return Section(
        "trials",
        "Damage of pruning in each interval",
        "Damage is the log ratio of the pruned network's loss to that of the whole network after the same training. Dots are measured "
        "at the end of a short trial. Lines are expected after the training of an expert, and determine the budgets.",
        (Illustration("Damage by size", drawing),),
    )


def _ledger(run: DiffusionRun) -> Section:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in run.ledger:
        images, macs = sums.get((entry.stage, entry.what), (0, 0))
        sums[entry.stage, entry.what] = (images + entry.images, macs + entry.macs)
    stages: dict[str, float] = {}
    for (stage, _), (_, macs) in sums.items():
        stages[stage] = stages.get(stage, 0.0) + macs
    said = "; ".join(f"{stage}: {quantity(macs)} MACs" for stage, macs in stages.items())
    pieces = [(stage, macs, f"fill-{_hue(stage)}") for stage, macs in stages.items()]
    drawing = stacked_bar(Named("ledger-chart", "Training compute by stage", said), pieces, run.limit_macs)
    rows = [
        Row(
            (
                TableCell(stage),
                TableCell(what),
                TableCell(f"{images:,}"),
                TableCell(quantity(macs)),
                TableCell(share(macs, run.spent_macs), share_bar(macs / run.spent_macs if run.spent_macs else 0.0)),
            )
        )
        for (stage, what), (images, macs) in sums.items()
    ]
    columns = (Column("stage"), Column("spent on"), Column("images", True), Column("MACs", True), Column("of all", True))
    against = f", {share(run.spent_macs, run.limit_macs)} of one full-size model" if run.limit_macs else ""
    table = Table(f"{quantity(run.spent_macs)} MACs of training compute{against}", columns, tuple(rows))
    lead = "It contains all compute of the networks, scoring and measuring included. A training image counts as three forward passes."
    return Section("ledger", "Ledger of training compute", lead, (Illustration("Training compute by stage", drawing), table))


def _losses(run: DiffusionRun) -> Section:
    parts: list[Part] = []
    series = [Series(entry.stage.replace("-", " "), _thinned(entry), f"line-{_hue(entry.stage)}") for entry in run.losses]
    said = "; ".join(f"{entry.stage} ends at {entry.points[-1][1]:.4g}" for entry in run.losses)
    parts.append(
        Illustration("Training loss by step", line_chart(Named("loss-chart", "Training loss by step", said), series, ("step", "loss")))
    )
    lead = "Means over equal numbers of steps. Losses of different intervals are not comparable, because noise levels differ in difficulty."
    return Section("losses", "Training losses", lead, tuple(parts))


def _hue(stage: str) -> str:
    """Return the colour of a stage: that of its interval ("expert-1", "expert 1"), or that of the base."""
    number = stage.replace("-", " ").rpartition(" ")[2]
    return str(int(number) % 6) if number.isdecimal() else "base"


def _thinned(entry: LoggedLoss) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its stretch."""
    size = -(-len(entry.points) // _MOST_POINTS)
    stretches = [entry.points[start : start + size] for start in range(0, len(entry.points), size)]
    return [(stretch[-1][0], sum(loss for _, loss in stretch) / len(stretch)) for stretch in stretches]
