"""The pictures of the step-adaptive experiment, from the evaluations that are there; called by step_adaptive.py.

`NAME.png`: distance against sampling compute, loss by noise level, distance of the base by length of training. `NAME_arms.png`: every arm
in a row. `NAME_headline.png`: the arms that say it at a glance. `NAME_samples.png`: samples from the same noise side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxyprune.diffusion.data.write_images import beside, grid, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]
"""Evaluations, as step_adaptive.py writes them."""

CURVE = ("base_60", "base", "base_125")
"""Arms that show whether the base is done training."""
COMPARED = ("base", "experts_full", "single_80", "formula_80", "measured_80", "measured_50", "formula_50")
"""Arms of the plots by compute and by noise level; the others change one thing of these."""
SHOWN = ("base", "formula_80", "measured_80", "measured_50")
"""Arms whose samples are shown side by side."""
HEADLINE = {
    "base": "one full-size model",
    "single_80": "one pruned model",
    "formula_80": "step-adaptive, formula",
    "measured_80": "step-adaptive, measured",
    "formula_50": "step-adaptive, formula",
    "measured_50": "step-adaptive, measured",
}
"""Arms of the picture that says it at a glance, and what they are called there."""
SAMPLERS = {"dpm++": "DPM-Solver++", "ddim": "DDIM"}
"""Names of samplers in the plots."""
EARLIER = {"measured_80_interval": "measured_80"}
"""Names of arms in files of earlier versions, with the present ones."""
GREY, BLUE = "#7F7F7F", "#0072B2"


def draw(lines: Lines, samplers: Sequence[tuple[str, int]], run: Callable[[str, int], Path], place: Path) -> None:
    """All pictures.

    Args:
        lines: Evaluations, in the order of the arms.
        samplers: Name and steps; the first is drawn.
        run: Folder of an arm and a seed, for its samples.
        place: Where the pictures go, with the beginning of their names.
    """
    from matplotlib.figure import Figure

    sampler, steps = samplers[0]
    found: dict[str, Lines] = {}
    for line in lines:
        if line["sampler_name"] == sampler:
            arm = EARLIER.get(line["arm"], line["arm"])
            found[arm] = [*found.get(arm, ()), line]
    distance = f"Fréchet distance, {SAMPLERS.get(sampler, sampler)}, {steps} steps"
    place.parent.mkdir(exist_ok=True)

    curve = "base" in found and sum(arm in found for arm in CURVE) > 1
    figure = Figure(figsize=(12 if curve else 9, 4.5), layout="constrained")
    left, middle, *right = figure.subplots(1, 3 if curve else 2, width_ratios=(1.5, 1.5, 1)[: 3 if curve else 2])
    _compute_and_noise(left, middle, {arm: found[arm] for arm in COMPARED if arm in found}, distance)
    for axes in right:
        _curve(axes, lines, samplers)
    figure.savefig(place.with_name(f"{place.name}.png"), dpi=130)

    every = {arm: runs[0]["what"] for arm, runs in found.items()}
    headline = {arm: f"{name}\n{_percent(found[arm])} of the sampling MACs" for arm, name in HEADLINE.items() if arm in found}
    for ending, labels in (("arms", every), ("headline", headline)):
        figure = Figure(figsize=(7, 0.8 + (0.6 if ending == "headline" else 0.4) * len(labels)), layout="constrained")
        _rows(figure.subplots(), {label: found[arm] for arm, label in labels.items()}, f"{distance}; smaller is better")
        figure.savefig(place.with_name(f"{place.name}_{ending}.png"), dpi=150)

    for seed in sorted({line["seed"] for line in lines}):
        paths = [run(arm, seed) / f"samples-{sampler}" / "000.npz" for arm in SHOWN]
        if all(path.is_file() for path in paths):
            save_picture(beside([grid(_first(path, 36), scale=2) for path in paths]), place.with_name(f"{place.name}_samples.png"))
            break


def _compute_and_noise(left: Axes, middle: Axes, found: Mapping[str, Lines], distance: str) -> None:
    """Left a dot for each run; in the middle the mean loss of an arm by noise level, against the base's."""
    base = _losses(found.get("base", []))
    for runs in found.values():
        (mark,) = left.plot([100 * line["relative_macs"] for line in runs], _distances(runs), "o", markersize=5, alpha=0.8)
        mark.set_label(runs[0]["what"])
        losses = _losses(runs)
        same_bins = base is not None and losses is not None and np.allclose(losses[:, 0], base[:, 0])  # other intervals have other bins
        if base is not None and losses is not None and same_bins and runs is not found["base"]:
            middle.plot(losses[:, 0], 100 * (losses[:, 1] / base[:, 1] - 1), color=mark.get_color(), linewidth=1.2)
    left.set(xlabel="sampling MACs, % of the base", ylabel=distance, ylim=(0, 1.15 * left.dataLim.ymax))
    left.legend(fontsize=7, frameon=False)
    middle.axhline(0, color="0.6", linewidth=0.8)
    middle.set_yscale("symlog", linthresh=10)
    low, high = middle.get_ylim()
    ticks = [tick for tick in (-70, -40, -20, -10, -5, 0, 5, 10) if low <= tick <= high]
    middle.set_yticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
    middle.set(xlabel="SNR (dB)", ylabel="held-out loss against the full base (%)")


def _curve(axes: Axes, lines: Lines, samplers: Sequence[tuple[str, int]]) -> None:
    """Is the base done training? Its distance after less, as much and more: a dot for each seed, a line through the means."""
    for sampler, steps in samplers:
        found = [[line for line in lines if line["arm"] == arm and line["sampler_name"] == sampler] for arm in CURVE]
        found = [runs for runs in found if runs]
        shares = [100 * statistics.mean(line["training_macs"] / line["reference_macs"] for line in runs) for runs in found]
        (mark,) = axes.plot(
            shares, [statistics.mean(_distances(runs)) for runs in found], "-", label=f"{SAMPLERS.get(sampler, sampler)}, {steps} steps"
        )
        for share, runs in zip(shares, found, strict=True):
            axes.plot([share] * len(runs), _distances(runs), "o", color=mark.get_color(), markersize=4, alpha=0.7)
    axes.set(xlabel="training of the full base (%)", ylabel="Fréchet distance", ylim=(0, 1.15 * axes.dataLim.ymax))
    axes.legend(fontsize=7, frameon=False)


def _rows(axes: Axes, found: Mapping[str, Lines], distance: str) -> None:
    """One row for each arm: a bar to the mean, a dot for each seed."""
    for row, runs in enumerate(found.values()):
        colour = GREY if runs[0]["arm"] in CURVE else BLUE
        axes.barh(row, statistics.mean(_distances(runs)), height=0.55, color=colour, alpha=0.35)
        axes.plot(_distances(runs), [row] * len(runs), "o", color=colour, markersize=6)
    axes.set_yticks(range(len(found)), list(found), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(distance)
    axes.spines[["top", "right"]].set_visible(False)


def _distances(runs: Lines) -> list[float]:
    return [line["frechet"]["value"] for line in runs]


def _percent(runs: Lines) -> str:
    return f"{100 * statistics.mean(line['relative_macs'] for line in runs):.0f} %"


def _losses(runs: Lines) -> np.ndarray | None:
    """[SNR in dB, held-out loss], mean over runs."""
    return np.mean([line["loss_by_snr"] for line in runs], axis=0) if runs else None


def _first(path: Path, count: int) -> torch.Tensor:
    with np.load(path, allow_pickle=False) as archive:
        return torch.from_numpy(archive["images"][:count])
