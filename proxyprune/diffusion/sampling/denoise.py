"""From noise to images: any diffusers scheduler, with the expert of each step chosen by the step's SNR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import Intervals
from proxyprune.diffusion.process.noise_schedule import snr_of_steps
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.scheduler_check import rehearse
from proxyprune.diffusion.sampling.schedulers import begin_at, check_process, check_start, named, step_arguments, unusable_steps
from proxyprune.diffusion.sampling.step_cache import step_of
from proxyprune.errors import InputError
from proxyprune.support.seeds import derived_seed

AfterStep = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ExpertSampler:
    """Draws images with the expert of each step.

    Attributes:
        experts: One for each interval.
        intervals: Which expert works at which SNR.
        calling: How a network is called.
        scheduler: A diffusers scheduler.
        trained: The scheduler of the process that the experts were trained on; None if it is the same.
        rehearsed: What has been tried without images: schedulers and numbers of steps that work.
    """

    experts: Experts
    intervals: Intervals
    calling: Calling
    scheduler: Scheduler = field(repr=False)
    trained: Scheduler | None = field(default=None, repr=False)
    rehearsed: set[str] = field(default_factory=set, repr=False)

    def route(self, steps: int) -> tuple[int, ...]:
        """Index of the expert of each call of the network.

        Raises:
            InputError: If the scheduler does not lead from noise to images with so many steps.
        """
        if self.trained is not None:
            check_process(self.scheduler, self.trained)
        with named(type(self.scheduler).__name__):
            self.scheduler.set_timesteps(steps)
            levels = snr_of_steps(self.scheduler)[unusable_steps(self.scheduler) :]
        if not len(levels):
            name = type(self.scheduler).__name__
            raise InputError(f"None of the {steps} steps of {name} is at a noise level where the network can be used. Use more steps.")
        check_start(self.scheduler, steps, float(levels[0]))
        key = f"{type(self.scheduler).__name__} {self.scheduler.config} {steps}"
        if key not in self.rehearsed:
            rehearse(self.scheduler, self.scheduler if self.trained is None else self.trained, steps)
            self.rehearsed.add(key)
        return tuple(int(index) for index in self.intervals.interval_of(levels))

    def macs(self, steps: int) -> int:
        """Exact MACs of one image."""
        return sum(self.experts.macs[index] for index in self.route(steps))

    @torch.no_grad()
    def denoise(
        self,
        noise: Tensor,
        steps: int,
        condition: Tensor | None,
        generators: Sequence[torch.Generator],
        after_step: AfterStep | None = None,
    ) -> Tensor:
        """Images [images, channels, height, width] in [-1, 1] from unit noise of the same shape.

        Args:
            noise: Unit noise.
            steps: Steps of the scheduler.
            condition: Labels or embeddings, or None.
            generators: One for each image.
            after_step: Receives the number of the call, its timestep and the images after it; returns the images to go on with.

        Raises:
            InputError: If the scheduler does not lead from noise to images, or the networks give something that is no number.
        """
        scheduler, route = self.scheduler, self.route(steps)
        scheduler.set_timesteps(steps)
        begin_at(scheduler, len(scheduler.timesteps) - len(route))
        images = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        extra = step_arguments(scheduler, generators)
        self.experts.forget()
        for number, (time, index) in enumerate(zip(scheduler.timesteps[-len(route) :], route, strict=True)):
            scaled = scheduler.scale_model_input(images, time) if hasattr(scheduler, "scale_model_input") else images
            times = time.to(images.device).expand(len(images))
            with step_of(self.experts[index], number, len(route)):
                predicted = self._predict(index, scaled, times, condition)
            with named(type(scheduler).__name__):
                images = scheduler.step(predicted, time, images, **extra).prev_sample
            if after_step is not None:
                images = after_step(number, time, images)
        if not bool(torch.isfinite(images).all()):
            raise InputError(
                f"{steps} steps of {type(scheduler).__name__} ended in NaN or infinite values. Use fewer steps or another "
                "sampler. If the problem remains, check the log of the networks' training."
            )
        return images.clamp(-1.0, 1.0)

    def _predict(self, index: int, images: Tensor, times: Tensor, condition: Tensor | None) -> Tensor:
        """Run the expert in its own dtype; images, and with them all arithmetic of the scheduler, stay in theirs."""
        expert, dtype = self.experts.callable(index), self.experts.dtype
        if dtype is None:
            return self.calling.predict(expert, images, times, condition)
        if condition is not None and condition.is_floating_point():
            condition = condition.to(dtype)
        return self.calling.predict(expert, images.to(dtype), times, condition).to(images.dtype)


def image_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """Return a generator for each image, so that an image does not depend on its neighbours in a batch."""
    return [torch.Generator().manual_seed(derived_seed(seed, "image", index)) for index in range(first, first + count)]


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw unit noise [images, *shape]."""
    return torch.stack([torch.randn(shape, generator=generator, device=generator.device) for generator in generators]).to(device)


def conditions(classes: int, first: int, count: int) -> Tensor | None:
    """Labels drawn evenly, by the number of the image; None without classes."""
    if not classes:
        return None
    return torch.arange(first, first + count) % classes
