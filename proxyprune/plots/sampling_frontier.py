"""Distance to the data against the compute of sampling, a curve for each pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxyprune.diffusion.evaluation.evaluate import Evaluation
from proxyprune.errors import StorageError
from proxyprune.plots.figure import DOTS_PER_INCH, check_plot_path

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""
_MARKERS = "osD^vxP"


def plot_frontier(found: Sequence[tuple[str, Evaluation]], path: Path) -> None:
    """Draw the Fréchet distance, with its 95 % interval, against the MACs of one image.

    Args:
        found: (pipeline, evaluation); points of one pipeline are joined.
        path: PNG, SVG or PDF file.

    Raises:
        StorageError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(name for name, _ in found)):
        own = sorted((judged for other, judged in found if other == name), key=lambda judged: judged.sampling_macs)
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        macs = [judged.sampling_macs for judged in own]
        axes.plot(macs, [judged.frechet.value for judged in own], color=colour, marker=marker, markersize=5, label=name)
        axes.fill_between(
            macs, [judged.frechet.low for judged in own], [judged.frechet.high for judged in own], color=colour, alpha=0.15, linewidth=0
        )
        for judged in own:
            axes.annotate(str(judged.steps), (judged.sampling_macs, judged.frechet.value), (0, 6), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("MACs of one image (numbers: sampling steps)")
    axes.set_ylabel("Fréchet distance (smaller is better)")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise StorageError(f"The picture {path} cannot be written: {error}.") from error
