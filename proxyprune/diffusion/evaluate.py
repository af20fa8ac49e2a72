"""Figures of merit of a pipeline, each with what it depends on: features, number of images, sampler, steps, seed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from proxyprune.diffusion.conditioning import repeated
from proxyprune.diffusion.data import ImageData
from proxyprune.diffusion.denoiser import Calling
from proxyprune.diffusion.draws import fixed_batches
from proxyprune.diffusion.features import Features
from proxyprune.diffusion.intervals import Intervals
from proxyprune.diffusion.measure import interval_loss
from proxyprune.diffusion.metrics import Estimate, bootstrap, frechet, frechet_distance, kernel_distance, precision_recall
from proxyprune.diffusion.objective import Objective, Process
from proxyprune.diffusion.pipeline import StepAdaptivePipeline
from proxyprune.diffusion.schedule import NoiseSchedule

_MANIFOLD_IMAGES = 5000
"""Images of each side for precision and recall, whose cost grows with the square."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and under what conditions.

    Attributes:
        frechet: Fréchet distance; smaller is better.
        kid: Kernel distance; smaller is better.
        precision: Share of generated images that look real.
        recall: Share of real images that can be generated.
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

    frechet: Estimate
    kid: Estimate
    precision: float
    recall: float
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
        return {"schema": 1, **asdict(self), "losses": list(self.losses), "notes": list(self.notes)}


_IMAGES_A_FEATURE = 10
_FEW = (
    "So few images make the Fréchet distance too large, by more than its interval says: it has to estimate a covariance. Compare only with "
    "figures of as many images, or take {:,} and more."
)


def compare(real: Tensor, fake: Tensor, features: Features, *, rounds: int = 100, seed: int = 0) -> dict[str, Any]:
    """Distances of two sets of images, bytes [images, channels, height, width]: frechet, kid (Estimates), precision, recall, notes.

    The bootstrap of KID goes over at most 2,000 generated images at a time.
    """
    a, b = features.of(real), features.of(fake)
    mean, cov = a.mean(axis=0), np.cov(a, rowvar=False)
    frechet_distance(a[:2], b[:2])  # shapes and finiteness
    found = bootstrap(lambda x: frechet(mean, cov, x.mean(axis=0), np.cov(x, rowvar=False)), b, rounds=rounds, seed=seed)
    kid_value = kernel_distance(a[:10000], b[:10000])
    spread = bootstrap(lambda x: kernel_distance(a[:2000], x), b[:2000], rounds=min(rounds, 50), seed=seed)
    kid = Estimate(kid_value, kid_value + spread.low - spread.value, kid_value + spread.high - spread.value)
    precision, recall = precision_recall(a[:_MANIFOLD_IMAGES], b[:_MANIFOLD_IMAGES])
    few = min(len(a), len(b)) < _IMAGES_A_FEATURE * a.shape[1]
    return {
        "frechet": found,
        "kid": kid,
        "precision": precision,
        "recall": recall,
        "notes": (_FEW.format(_IMAGES_A_FEATURE * a.shape[1]),) * few,
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
    started = time.perf_counter()
    if images_given is None:
        fake = pipeline.generate(images, steps=steps, batch_size=batch_size, seed=seed, condition=condition)
    else:
        fake = images_given
    seconds = time.perf_counter() - started if seconds_given is None else seconds_given
    losses: tuple[float, ...] = ()
    if schedule is not None:
        models = [pipeline.experts[index] for index in range(len(pipeline.experts))] if pipeline.experts.resident else []
        losses = held_out_losses(models, pipeline.blueprint.intervals, pipeline.blueprint.calling, data, schedule, seed=seed)
    return Evaluation(
        **compare(reference, fake, features, seed=seed),
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
    models: Sequence[nn.Module],
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
