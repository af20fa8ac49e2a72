"""The picture of a search: loss by measurement, and the best so far."""

from __future__ import annotations

import itertools
from pathlib import Path

from proxyprune.plots.figure import check_plot_path, write_figure
from proxyprune.searching.run_search import SearchResult

_COLOURS = {"start": "#000000", "better": "#009E73", "worse": "#999999"}


def plot_search(result: SearchResult, path: str | Path) -> None:
    """Draw every measurement, the best so far, the one-shot start and the unpruned network; failed rounds are crosses at the foot.

    Args:
        result: A finished search.
        path: Where to write; the suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        StorageError: If the format is unknown or the file cannot be written.
    """
    path = check_plot_path(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    measured = [entry for entry in result.rounds if entry.measured]
    numbered = list(enumerate(measured, start=1))
    for verdict, colour in _COLOURS.items():
        points = [(number, entry.loss) for number, entry in numbered if entry.verdict == verdict and entry.loss is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=colour, label=verdict, zorder=3)
    failed = [number for number, entry in numbered if entry.loss is None]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "x", color="#D55E00", transform=axes.get_xaxis_transform(), label="failed")
    losses = [float("inf") if entry.loss is None else entry.loss for entry in measured]
    axes.step(range(1, len(losses) + 1), list(itertools.accumulate(losses, min)), where="post", color="#0072B2", label="best so far")
    if result.start_loss is not None:
        axes.axhline(result.start_loss, color="0.5", linestyle=":", linewidth=1, label="one shot")
    axes.axhline(result.base_loss, color="0.5", linestyle="--", linewidth=1, label="unpruned")
    axes.set_xlim(0.4, len(losses) + 0.6)
    axes.set(xlabel="measurement", ylabel="held-out loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{result.graph.model_class} to {result.plan.target}, proposed by {result.proposer}", fontsize=10, loc="left")
    axes.grid(axis="y", color="0.92")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    write_figure(figure, path)
