"""A scheduler is tried before images are drawn with it, on the one process whose answer is known: all images are the same.

A perfect denoiser of that process has a closed form. With it, every step has to hold as much noise as the network expects at the timestep
that it gets, and the last has to end at the image. A scheduler of another process, one that starts in the middle or stops before the
image, and steps that divide by zero all show there, whatever their class; with a real network they show as bad images only.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from proxyprune.diffusion.process.noise_schedule import NoiseSchedule, is_flow
from proxyprune.diffusion.process.objective import TARGETS
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.diffusion.sampling.schedulers import FITTING, begin_at, named, step_arguments, unusable_steps
from proxyprune.errors import InputError

_IMAGE = 0.5
_SHAPE = (1, 1, 16, 16)
_MOST_NOISE = 3.0
"""Noise over what the network expects at a step. Right samplers have 1; those that begin in the middle have 3 at a start of 9 dB."""
_MOST_ERROR = 0.2
"""Of the last step, root mean square. Noise at the cleanest timestep of a usual process is a few hundredths."""
_LEAST_NOISE = 1e-4
"""Stands for none, by which nothing can be divided."""


def rehearse(scheduler: Scheduler, trained: Scheduler, steps: int) -> None:
    """Refuse a scheduler, or a number of steps, with which even a perfect network would not end at images.

    Args:
        scheduler: Any of diffusers; its timesteps are set again.
        trained: The scheduler of the process that the network was trained on.
        steps: How many steps are to be taken.

    Raises:
        InputError: That says at which step what went wrong.
    """
    name = type(scheduler).__name__
    kinds = [found.config.get("prediction_type") for found in (scheduler, trained)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise InputError(f"{name} expects a network that predicts {kinds[0]}, and this one predicts {kinds[1]}. {FITTING}")
    process = NoiseSchedule.from_scheduler(trained)
    generator = torch.Generator().manual_seed(0)
    with named(name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps[unusable_steps(scheduler) :]
        extra = step_arguments(scheduler, [generator])
        images = torch.randn(_SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        begin_at(scheduler, len(scheduler.timesteps) - len(times))
        for number, time in enumerate(times):
            scaled = scheduler.scale_model_input(images, time) if hasattr(scheduler, "scale_model_input") else images
            signal, noise = _levels(process, is_flow(trained), float(time))
            unit = (scaled.double() - signal * _IMAGE) / noise
            found = float(unit.square().mean().sqrt())
            if not found <= _MOST_NOISE:
                seen = f"{found:.1f} times the noise" if math.isfinite(found) else "values that are not finite instead of the noise"
                raise InputError(
                    f"{name} does not sample this process in {steps} steps: before step {number + 1}, images have {seen} that the network "
                    f"expects at timestep {float(time):g}. {FITTING}"
                )
            told = [torch.tensor(value, dtype=torch.float64) for value in (signal, noise)]
            predicted = TARGETS[process.prediction](torch.full_like(unit, _IMAGE), unit, *told)
            images = scheduler.step(predicted.float(), time, images, **extra).prev_sample
    error = float((images.double() - _IMAGE).square().mean().sqrt())
    if not error <= _MOST_ERROR:
        raise InputError(
            f"{name} does not end at images in {steps} steps: a perfect network leaves "
            f"{f'an error of {error:.2g}' if math.isfinite(error) else 'values that are not finite'}. {FITTING}"
        )


def _levels(process: NoiseSchedule, flow: bool, time: float) -> tuple[float, float]:
    """Signal and noise at a timestep, between two of training by interpolation in dB."""
    if flow:
        noise = max(_LEAST_NOISE, time / float(process.times[-1] / process.noise[-1]))
        return 1.0 - noise, noise
    decibels = np.clip(process.snr_db, -1e3, 1e3)
    ratio = 10.0 ** (float(np.interp(time, process.times, decibels)) / 10.0)
    return math.sqrt(ratio / (1.0 + ratio)), math.sqrt(1.0 / (1.0 + ratio))
