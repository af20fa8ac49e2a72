"""The picture of a comparison: agreement with the oracle, and the loss by target, for every scorer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from proxyprune.comparing.values import Comparison, Spread
from proxyprune.plots.figure import check_plot_path, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOUR = "#0072B2"


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw Kendall's tau and, for each case, the held-out loss (after the recovery when there is one); bars span the seeds.

    Args:
        comparison: All measurements.
        path: Where to write; the suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        StorageError: If the format is unknown or the file cannot be written.
    """
    path = check_plot_path(path)
    from matplotlib.figure import Figure

    summaries = comparison.summary()
    scorers = list(dict.fromkeys(summary.scorer for summary in summaries))
    recovers = bool(comparison.settings.get("recovery_steps"))
    panels_wide = 1 + len(comparison.cases)
    figure = Figure(figsize=(2.6 * panels_wide + 1.4, 0.28 * len(scorers) + 1.5), layout="constrained")
    first, *others = figure.subplots(1, panels_wide, sharey=True, squeeze=False)[0]
    by_scorer = {summary.scorer: summary for summary in summaries}
    _panel(first, "agreement with ablation", "Kendall's tau", [by_scorer[scorer].tau for scorer in scorers])
    first.axvline(0.0, color="0.6", linewidth=0.8)
    base = Spread.of(cell.recovered_loss if recovers else cell.loss for cell in comparison.base)
    for axes, case in zip(others, comparison.cases, strict=True):
        found = {summary.scorer: summary for summary in summaries if summary.case == case}
        label = "loss after recovery" if recovers else "loss after the cut"
        _panel(axes, str(case), label, [found[scorer].recovered_loss if recovers else found[scorer].loss for scorer in scorers])
        if base is not None:
            axes.axvline(base.mean, color="0.6", linestyle="--", linewidth=0.8)
    first.set_yticks(range(len(scorers)), scorers, fontsize=8)
    first.set_ylim(len(scorers) - 0.5, -0.5)
    trained = ", trained as long" if recovers else ""
    figure.suptitle(f"{comparison.model_class}: mean and range over seeds; dashed: unpruned{trained}", fontsize=10)
    write_figure(figure, path)


def _panel(axes: Axes, title: str, label: str, spreads: Iterable[Spread | None]) -> None:
    for place, spread in enumerate(spreads):
        if spread is None:
            axes.text(0.03, place, "none", transform=axes.get_yaxis_transform(), fontsize=7, va="center", color="0.5")
            continue
        axes.plot([spread.low, spread.high], [place, place], color=_COLOUR, linewidth=1.6)
        axes.plot([spread.mean], [place], "o", color=_COLOUR, markersize=4)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", color="0.92")
