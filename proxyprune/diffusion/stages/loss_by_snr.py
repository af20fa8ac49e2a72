"""Held-out loss by noise level: the base against the expert at work, in bins that no interval's boundary crosses.

It is evaluation and not training, so it is not in the ledger; the record says what it cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from proxyprune.diffusion.process.objective import Objective, Process, interval_loss
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.training.batches import fixed_batches
from proxyprune.support.files import write_json

_BATCH = 128


@dataclass(frozen=True)
class LossBin:
    """A stretch of timesteps inside one interval.

    Attributes:
        interval: Index of the interval, and of the expert.
        first: First timestep.
        last: Last timestep.
        snr_db: Exact SNR at the first, the middle and the last timestep; infinite without signal.
        base: Held-out loss of the base, unweighted.
        expert: That of the expert on the same images, noise and timesteps; None when the pipeline is the base itself.
    """

    interval: int
    first: int
    last: int
    snr_db: tuple[float, float, float]
    base: float
    expert: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None for an infinite SNR."""
        return {**vars(self), "snr_db": [value if math.isfinite(value) else None for value in self.snr_db]}


def measure_bins(
    setup: Setup, base: nn.Module, experts: Experts | None, bins: Sequence[tuple[int, int, int]], images: int
) -> list[LossBin]:
    """Loss of base and expert in each bin.

    Args:
        setup: The run.
        base: The base, on the device.
        experts: One for each interval, or None to look at the base alone.
        bins: (interval, first, last timestep), as from `bins_of`.
        images: Held-out images in each bin.
    """
    process, objective, exact = Process(setup.schedule), Objective(setup.calling), setup.schedule.snr_db
    found = []
    for interval, first, last in bins:
        batches = fixed_batches(
            setup.data,
            process,
            first,
            last,
            images=images,
            batch_size=_BATCH,
            seed=setup.config.seed,
            held_out=True,
            device=setup.device,
        )
        levels = (float(exact[first]), float(exact[(first + last) // 2]), float(exact[last]))
        own = None if experts is None else interval_loss(experts[interval], objective, batches)
        found.append(LossBin(interval, first, last, levels, interval_loss(base, objective, batches), own))
    return found


def write_losses(run: RunFolder, bins: Sequence[LossBin], images: int, macs: Mapping[str, int]) -> None:
    """Put the record into the folder of a run, atomically.

    Args:
        run: The folder.
        bins: What was measured.
        images: Held-out images in each bin.
        macs: What it cost, by "base" and "experts".
    """
    record = {
        "schema": 1,
        "images": images,
        "macs": dict(macs),
        "in_ledger": False,
        "bins": [entry.to_dict() for entry in bins],
    }
    write_json(run.losses, record)


def evaluation_macs(bins: Sequence[tuple[int, int, int]], images: int, base_macs: int, expert_macs: Sequence[int] | None) -> dict[str, int]:
    """Return what `measure_bins` computes, by "base" and "experts"."""
    experts = 0 if expert_macs is None else images * sum(expert_macs[interval] for interval, _, _ in bins)
    return {"base": images * base_macs * len(bins), "experts": experts}
