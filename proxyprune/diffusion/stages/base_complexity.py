"""Measure how complex the base is at each noise level, with two passes of a few training images each."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.diffusion.data.image_data import to_float
from proxyprune.diffusion.process.complexity import Complexity, acceleration, angles, energy, flow_of
from proxyprune.diffusion.process.noise_schedule import FloatArray
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.training.ledger import Entry
from proxyprune.support.seeds import derived_seed

_PASSES = 2  # of each image, at each noise level
_STEP = 0.03  # radians that a path is followed for; the process's own timesteps decide where that is not possible


def complexity_macs(setup: Setup) -> int:
    """Return what `complexity_of_base` costs in MACs."""
    settings = setup.config.intervals
    return _PASSES * len(_levels(setup)) * settings.images * setup.base_macs


def complexity_of_base(setup: Setup, model: nn.Module) -> tuple[Complexity, Entry]:
    """Measure the monitor at `intervals.bins` noise levels, evenly spread over the angle, on the same images.

    Args:
        setup: The run.
        model: The base, on the device.

    Returns:
        The curve, and what it cost.

    Raises:
        InputError: If the monitor is not finite, or 0, at some level.
    """
    settings, schedule = setup.config.intervals, setup.schedule
    generator = torch.Generator().manual_seed(derived_seed(setup.config.seed, "complexity"))
    chosen = torch.randperm(len(setup.data.train), generator=generator).repeat(-(-settings.images // len(setup.data.train)))
    chosen = chosen[: settings.images]
    images = to_float(setup.data.train[chosen].to(setup.device))
    noise = torch.randn(images.shape, generator=generator).to(setup.device)
    condition = None if setup.data.labels is None else setup.data.labels[chosen].to(setup.device)
    phi, values = angles(schedule), []
    whole = bool(np.all(schedule.times == np.round(schedule.times)))

    def flow(state: Tensor, timestep: int) -> Tensor:
        signal, level = float(schedule.signal[timestep]), float(schedule.noise[timestep])
        noisy = state * math.hypot(signal, level)
        times = torch.full((len(state),), float(schedule.times[timestep]), device=state.device)
        predicted = setup.calling.predict(model, noisy, times.long() if whole else times, condition).float()
        return flow_of(schedule.prediction, noisy, predicted, signal, level)

    model.eval()
    levels = _levels(setup)
    with torch.no_grad():
        for timestep in levels:
            state = math.cos(phi[timestep]) * images + math.sin(phi[timestep]) * noise
            if settings.monitor == "acceleration":
                found = acceleration(flow, state, timestep, _neighbour(phi, timestep), phi)
            else:
                found = energy(flow, state, timestep, generator)
            values.append(float(found))
    looked = _PASSES * len(levels) * settings.images
    entry = Entry("intervals", None, "measuring", looked, setup.base_macs * looked)
    return Complexity(settings.monitor, tuple(float(phi[level]) for level in levels), tuple(values), settings.exponent), entry


def _levels(setup: Setup) -> list[int]:
    """Timesteps evenly spread over the angle, within the clipped range of the SNR."""
    phi, clip = angles(setup.schedule), setup.config.noise.clip_db
    inside = np.flatnonzero(np.abs(setup.schedule.snr_db) <= clip)
    if not len(inside):
        return [len(phi) // 2]
    first, last = phi[inside[0]], phi[inside[-1]]
    count = setup.config.intervals.bins
    wanted = first + (last - first) * (np.arange(count) + 0.5) / count
    return sorted({int(np.abs(phi - angle).argmin()) for angle in wanted})


def _neighbour(phi: FloatArray, timestep: int) -> int:
    """Return the timestep towards the clean end that is nearest to a short step away; the next one where all are farther."""
    if timestep == 0:
        return 1
    return min(timestep - 1, int(np.abs(phi - (phi[timestep] - _STEP)).argmin()))
