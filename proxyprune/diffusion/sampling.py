"""From noise to images: any diffusers scheduler, with the expert of each step chosen by the step's SNR."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proxyprune.diffusion.denoiser import Calling
from proxyprune.diffusion.experts import Experts
from proxyprune.diffusion.intervals import Intervals
from proxyprune.diffusion.samplers import check_start, named, unusable_steps
from proxyprune.diffusion.schedule import snr_of_steps
from proxyprune.scoring.seeds import derived_seed


@dataclass(frozen=True)
class Sampler:
    """Experts, and how they take turns.

    Attributes:
        experts: One for each interval.
        intervals: Which expert works at which SNR.
        calling: How a network is called.
        scheduler: A diffusers scheduler.
    """

    experts: Experts
    intervals: Intervals
    calling: Calling
    scheduler: Any = field(repr=False)

    def route(self, steps: int) -> tuple[int, ...]:
        """Index of the expert of each call of the network.

        Raises:
            InputError: If the scheduler does not begin at noise with so many steps.
        """
        with named(type(self.scheduler).__name__):
            self.scheduler.set_timesteps(steps)
            levels = snr_of_steps(self.scheduler)[unusable_steps(self.scheduler) :]
        check_start(self.scheduler, steps, float(levels[0]))
        return tuple(int(index) for index in self.intervals.interval_of(levels))

    def macs(self, steps: int) -> int:
        """Exact MACs of one image."""
        return sum(self.experts.macs[index] for index in self.route(steps))

    @torch.no_grad()
    def denoise(self, noise: Tensor, steps: int, condition: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        """Images [images, channels, height, width] in [-1, 1] from unit noise of the same shape."""
        scheduler = self.scheduler
        route = self.route(steps)
        images = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        extra = _extras(scheduler, generators)
        for time, index in zip(scheduler.timesteps[-len(route) :], route, strict=True):
            scaled = scheduler.scale_model_input(images, time) if hasattr(scheduler, "scale_model_input") else images
            times = time.to(images.device).expand(len(images))
            predicted = self.calling.predict(self.experts.callable(index), scaled, times, condition)
            with named(type(scheduler).__name__):
                images = scheduler.step(predicted, time, images, **extra).prev_sample
        return images.clamp(-1.0, 1.0)


def _extras(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """What a scheduler's step takes beside the prediction.

    A scheduler that clips its estimate of the clean image and keeps the noise of the unclipped one mixes two states that do not belong
    together; DDIM does so unless asked otherwise, and its images come out two to three times as far from the data.
    """
    accepted = inspect.signature(scheduler.step).parameters
    clips = bool(scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"))
    found: dict[str, Any] = {"generator": list(generators)} if "generator" in accepted else {}
    return found | ({"use_clipped_model_output": True} if clips and "use_clipped_model_output" in accepted else {})


def image_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """A generator for each image, so that an image does not depend on its neighbours in a batch."""
    return [torch.Generator().manual_seed(derived_seed(seed, "image", index)) for index in range(first, first + count)]


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Unit noise [images, *shape]."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)


def conditions(classes: int, first: int, count: int) -> Tensor | None:
    """Labels drawn evenly, by the number of the image; None without classes."""
    if not classes:
        return None
    return torch.arange(first, first + count) % classes
