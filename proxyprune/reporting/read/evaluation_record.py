"""Evaluations of pipelines, as `proxyprune diffusion evaluate --json` prints them."""

from __future__ import annotations

from dataclasses import dataclass

from proxyprune.reporting.read.json_fields import Fields, fail


@dataclass(frozen=True)
class Estimated:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def read(cls, data: Fields, name: str) -> Estimated:
        """Read one estimate by its name."""
        found = data.fields(name)
        value, low, high = (found.number(part) for part in ("value", "low", "high"))
        if value is None or low is None or high is None:
            fail(found.where, f"expected {name} with value, low and high")
        return cls(value, low, high)


@dataclass(frozen=True)
class EvaluationRecord:
    """The figures of one pipeline at one number of steps.

    Attributes:
        pipeline: Folder or hub id, or "" where there was only one.
        sampler: Class of the scheduler.
        steps: Sampling steps.
        seed: Of the images.
        images: Generated images.
        features: What images were compared by.
        reference: Real images, and where they came from.
        frechet: Fréchet distance; smaller is better.
        kid: Kernel distance; smaller is better.
        precision: Share of generated images that look real, or None.
        recall: Share of real images that can be generated, or None.
        macs: MACs of one image.
        relative_macs: The same as a share of the unpruned network's, or None.
        seconds: Wall time of one image, or None.
        params: Parameters stored, or None.
        notes: Sentences for the reader.
    """

    pipeline: str
    sampler: str
    steps: int
    seed: int
    images: int
    features: str
    reference: str
    frechet: Estimated
    kid: Estimated
    precision: float | None
    recall: float | None
    macs: int
    relative_macs: float | None
    seconds: float | None
    params: int | None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: Fields) -> EvaluationRecord:
        """Read one evaluation."""
        return cls(
            data.text("pipeline", ""),
            data.text("sampler", ""),
            data.count("steps"),
            data.count("seed", 0),
            data.count("images"),
            data.text("features", ""),
            data.text("reference", ""),
            Estimated.read(data, "frechet"),
            Estimated.read(data, "kid"),
            data.number("precision"),
            data.number("recall"),
            data.count("sampling_macs"),
            data.number("relative_macs"),
            data.number("seconds_per_image"),
            data.optional_count("params"),
            data.texts("notes"),
        )


def evaluations(data: Fields) -> tuple[EvaluationRecord, ...]:
    """Read one evaluation, or several of one call."""
    return tuple(map(EvaluationRecord.read, data.objects("evaluations"))) if data.has("evaluations") else (EvaluationRecord.read(data),)
