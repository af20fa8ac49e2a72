"""Draw the frontier: a panel for each sampler, distance against forward passes of the full model, the range over seeds shaded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LABELS: Mapping[str, tuple[str, str, str]] = {
    "base": ("full model, fewer steps", "#000000", "o"),
    "experts_full": ("full-size experts", "#999999", "v"),
    "formula_80": ("step-adaptive, 80 % of a step's MACs", "#0072B2", "s"),
    "formula_50": ("step-adaptive, 50 %", "#D55E00", "D"),
    "single_80": ("one pruned model, 80 %", "#56B4E9", "^"),
    "single_50": ("one pruned model, 50 %", "#E69F00", "x"),
}
"""Arm to its name, colour (Okabe and Ito's, told apart by colour-blind readers too) and marker."""


def draw(lines: Sequence[Mapping[str, Any]], arms: Sequence[str], path: Path) -> None:
    """Draw the frontier.

    Args:
        lines: Evaluations, as frontier.py writes them.
        arms: Those that are drawn, in this order.
        path: PNG file.
    """
    from matplotlib.figure import Figure

    samplers = list(dict.fromkeys(line["sampler"] for line in lines))
    figure = Figure(figsize=(5.2 * len(samplers), 4.4), layout="constrained")
    for axes, sampler in zip(figure.subplots(1, len(samplers), squeeze=False)[0], samplers, strict=True):
        for arm in (arm for arm in arms if arm in LABELS):
            label, colour, marker = LABELS[arm]
            own = [line for line in lines if line["arm"] == arm and line["sampler"] == sampler]
            points = []
            for steps in sorted({line["steps"] for line in own}):
                found = [line for line in own if line["steps"] == steps]
                values = [line["frechet"] for line in found]
                points.append((statistics.mean(line["passes"] for line in found), statistics.mean(values), min(values), max(values)))
            if points:
                passes, mean, low, high = zip(*points, strict=True)
                axes.plot(passes, mean, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label)
                axes.fill_between(passes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title({"dpm++": "DPM-Solver++", "ddim": "DDIM"}.get(sampler, sampler))
        axes.set_xlabel("sampling compute, forward passes of the full model")
        axes.set_ylabel("Fréchet distance (smaller is better)")
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 40, 50) if low <= tick <= high]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        ticks = [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30) if low <= tick <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
