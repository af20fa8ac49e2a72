"""Figures of merit of a pipeline, each with what it depends on: features, number of images, sampler, steps, seed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from proxyprune.diffusion.data.conditions import repeated
from proxyprune.diffusion.data.image_data import ImageData
from proxyprune.diffusion.evaluation.features import Features
from proxyprune.diffusion.evaluation.metrics import (
    MetricEstimate,
    bootstrap,
    frechet,
    frechet_distance,
    kernel_distance,
    precision_recall,
    square_root,
)
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import Intervals
from proxyprune.diffusion.process.noise_schedule import NoiseSchedule
from proxyprune.diffusion.process.objective import Objective, Process, interval_loss
from proxyprune.diffusion.sampling.pipeline import StepAdaptivePipeline
from proxyprune.diffusion.training.batches import fixed_batches
from proxyprune.errors import InputError
from proxyprune.support.dataclass_json import to_plain

_MANIFOLD_IMAGES = 5000
"""Most images of each side for precision and recall, whose cost grows with the square."""


@dataclass(frozen=True)
class Evaluation:
    """The measurements, and their conditions.

    Attributes:
        frechet: Fréchet distance; smaller is better.
        kid: Kernel distance; smaller is better.
        precision: Share of generated images that look real.
        recall: Share of real images that can be generated.
        real_frechet: Fréchet distance of the same number of real images that are not among the reference; None if there are fewer.
            A perfect denoiser would have this distance, which is too large for few images.
        features: What images were compared by.
        images: Generated images.
        reference: Real images, and where they came from.
        sampler: Class of the scheduler.
        steps: Sampling steps.
        seed: Of the images.
        sampling_macs: Exact MACs of one image.
        relative_macs: The same as a share of the unpruned network's.
        seconds_per_image: Wall time of sampling, at the batch size that was used.
        params: Parameters stored, all experts together.
        losses: Held-out denoising loss by interval.
        notes: What a reader has to know.
    """

    frechet: MetricEstimate
    kid: MetricEstimate
    precision: float
    recall: float
    real_frechet: float | None
    features: str
    images: int
    reference: str
    sampler: str
    steps: int
    seed: int
    sampling_macs: int
    relative_macs: float
    seconds_per_image: float
    params: int
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": 1, **to_plain(self)}


_RESAMPLED = 2000
"""Images that KID is resampled from, whose cost grows with the square."""
_LEAST_IMAGES = 4
"""The data that precision and recall need with three neighbours."""
_IMAGES_A_FEATURE = 10
_FEW = (
    "With so few images, the Fréchet distance is too large by more than its interval, because it estimates a covariance. Compare it only "
    "with distances of the same number of images, or use at least {:,}."
)


def compare(
    real: Tensor, fake: Tensor, features: Features, *, others: Tensor | None = None, rounds: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Distances of two sets of images, bytes [images, channels, height, width]: frechet, kid (MetricEstimates), precision, recall, notes.

    With `others`, real images beside the reference, also real_frechet, their distance from it; without, that is None.

    Intervals are over generated images, for as many as there are. That of KID is resampled from at most 2,000 of them and narrowed by the
    root of their share. Precision and recall compare equally many images of both sides, since either grows with its manifold's.

    Raises:
        DataError: If images are no bytes.
        InputError: If there are fewer than 4 of either.
    """
    a, b = features.of(real), features.of(fake)
    mean, cov = a.mean(axis=0), np.cov(a, rowvar=False)
    frechet_distance(a[:2], b[:2])  # shapes and finiteness
    root = square_root(cov)
    found = bootstrap(lambda x: frechet(mean, cov, x.mean(axis=0), np.cov(x, rowvar=False), root), b, rounds=rounds, seed=seed)
    kid_value = kernel_distance(a[:10000], b[:10000])
    spread = bootstrap(lambda x: kernel_distance(a[:_RESAMPLED], x), b[:_RESAMPLED], rounds=min(rounds, 50), seed=seed)
    narrower = (min(len(b), _RESAMPLED) / min(len(b), 10000)) ** 0.5
    kid = MetricEstimate(kid_value, kid_value + narrower * (spread.low - spread.value), kid_value + narrower * (spread.high - spread.value))
    each = min(len(a), len(b), _MANIFOLD_IMAGES)
    precision, recall = precision_recall(a[:each], b[:each])
    few = min(len(a), len(b)) < _IMAGES_A_FEATURE * a.shape[1]
    return {
        "frechet": found,
        "kid": kid,
        "precision": precision,
        "recall": recall,
        "real_frechet": None if others is None else frechet_distance(a, features.of(others)),
        "notes": (features.note,) * bool(features.note) + (_FEW.format(_IMAGES_A_FEATURE * a.shape[1]),) * few,
    }


def evaluate(
    pipeline: StepAdaptivePipeline,
    data: ImageData,
    features: Features,
    *,
    images: int = 10000,
    steps: int = 50,
    batch_size: int = 100,
    seed: int = 0,
    schedule: NoiseSchedule | None = None,
    images_given: Tensor | None = None,
    seconds_given: float | None = None,
    condition: Tensor | None = None,
) -> Evaluation:
    """Sample, compare with held-out images, and measure the loss of each expert where it works.

    Args:
        pipeline: What is judged, with its scheduler.
        data: Held-out images of it are the reference; training images where there are fewer held-out ones than features.
        features: What images are compared by.
        images: How many to generate.
        steps: Sampling steps.
        batch_size: Images at a time.
        seed: Of the images.
        schedule: The training process, for the losses; None leaves them out.
        images_given: Images that were generated earlier.
        seconds_given: How long that took.
        condition: Labels or embeddings, one for each image. None takes those of the reference's images, so that classes are as frequent;
            classes take turns where the data have no labels.
    """
    enough = len(data.held_out) >= 2000
    reference, known = (data.held_out, data.held_out_labels) if enough else (data.train, data.labels)
    if condition is None and pipeline.blueprint.calling.condition and known is not None:
        condition = repeated(known, images)
    if images < _LEAST_IMAGES:
        raise InputError(f"An evaluation needs at least {_LEAST_IMAGES} images, found {images}.")
    if images_given is None and pipeline.experts.compile_options is not None:  # compiling is not sampling
        first = min(batch_size, images)
        pipeline.generate(first, steps=steps, batch_size=batch_size, condition=None if condition is None else condition[:first])
    started = time.perf_counter()
    if images_given is None:
        fake = pipeline.generate(images, steps=steps, batch_size=batch_size, seed=seed, condition=condition)
    else:
        fake = images_given
    seconds = time.perf_counter() - started if seconds_given is None else seconds_given
    others = data.train if enough else data.held_out
    as_many = others[: len(fake)] if len(others) >= len(fake) else None
    losses: tuple[float, ...] = ()
    if schedule is not None:
        models = (pipeline.experts[index] for index in range(len(pipeline.experts)))
        losses = held_out_losses(models, pipeline.blueprint.intervals, pipeline.blueprint.calling, data, schedule, seed=seed)
    return Evaluation(
        **compare(reference, fake, features, others=as_many, seed=seed),
        features=features.name,
        images=len(fake),
        reference=f"{len(reference):,} {'held-out' if enough else 'training'} images of {data.name}",
        sampler=type(pipeline.scheduler).__name__,
        steps=steps,
        seed=seed,
        sampling_macs=pipeline.sampling_macs(steps),
        relative_macs=pipeline.relative_macs(steps),
        seconds_per_image=seconds / len(fake),
        params=sum(pipeline.experts.params),
        losses=losses,
    )


def held_out_losses(
    models: Iterable[nn.Module],
    intervals: Intervals,
    calling: Calling,
    data: ImageData,
    schedule: NoiseSchedule,
    *,
    seed: int,
    images: int = 512,
) -> tuple[float, ...]:
    """Unweighted loss of each expert on held-out images at the timesteps of its interval."""
    objective, process = Objective(calling), Process(schedule)
    losses = []
    for model, interval in zip(models, intervals.over(schedule), strict=False):
        device = next(model.parameters()).device
        batches = fixed_batches(
            data, process, interval.first, interval.last, images=images, batch_size=128, seed=seed, held_out=True, device=device
        )
        losses.append(interval_loss(model, objective, batches))
    return tuple(losses)
