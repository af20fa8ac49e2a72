"""Pictures of a plan (SNR, intervals, budgets) and of results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from proxyprune.diffusion.process.intervals import Interval
from proxyprune.diffusion.process.noise_schedule import NoiseSchedule
from proxyprune.diffusion.stages.budgets import Budgets
from proxyprune.errors import StorageError
from proxyprune.plots.figure import DOTS_PER_INCH, check_plot_path


def plot_layout(schedule: NoiseSchedule, members: tuple[Interval, ...], budgets: Budgets, path: Path, *, clip_db: float) -> None:
    """SNR by timestep with the intervals, and the share of the base's MACs or time that each gets.

    Raises:
        StorageError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    check_plot_path(path)
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = np.arange(len(schedule.times))
    upper.plot(steps, np.clip(schedule.snr_db, -3 * clip_db, 3 * clip_db), color="#0072B2")
    upper.axhline(clip_db, color="#7F7F7F", linewidth=0.8, linestyle=":")
    upper.axhline(-clip_db, color="#7F7F7F", linewidth=0.8, linestyle=":")
    upper.set_ylabel("SNR (dB)")
    for member, fraction in zip(members, budgets.fractions, strict=True):
        lower.bar(member.first, fraction, width=member.timesteps, align="edge", color="#56B4E9", edgecolor="white")
        middle = (member.first + member.last) / 2
        lower.text(middle, fraction / 2, f"{fraction:.0%}", ha="center", va="center", fontsize=9)  # clear of the line of the mean
        if member.index:
            upper.axvline(member.first - 0.5, color="#D55E00", linewidth=1.0)
    mean = lower.axhline(
        budgets.mean, color="#D55E00", linewidth=1.0, linestyle="--", label=f"mean over the sampler's steps {budgets.mean:.1%}"
    )
    lower.set_ylim(0.0, 1.12)
    lower.set_ylabel("share of the base's time" if budgets.metric == "time" else "share of the base's MACs")
    lower.set_xlabel("timestep (0 is clean)")
    figure.legend(handles=[mean], loc="outside lower right", frameon=False)
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise StorageError(f"The picture {path} cannot be written: {error}.") from error
