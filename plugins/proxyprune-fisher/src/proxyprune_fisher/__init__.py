"""Second-order importance: the loss that a channel costs when it is set to zero, to second order, with a diagonal Fisher matrix."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proxyprune import ModelGraph, ScoringContext
from proxyprune.errors import InputError, ScoringError
from proxyprune.scoring import (
    REMOVAL_NOTE,
    BlockInfluence,
    Calibration,
    Ranking,
    differentiable_parameters,
    group_importance,
    half_saturation,
    mapped,
    parameters_by_block,
    significant,
    tensors_of,
    weight_times_gradient,
)

PER = ("sample", "batch")

__all__ = ["FisherScorer", "fisher_batch", "samples_of"]


@dataclass(frozen=True)
class FisherScorer:
    """Second-order loss increase of zeroing a channel, with the diagonal of the empirical Fisher matrix in the Hessian's place.

    A weight costs w**2 * E[g**2] / 2. An atom gets the sum of that over all slices that leave with it, a block the sum over all its
    parameters, brought to [0, 1) by `half_saturation`. E is the mean over the gradients of single samples ("sample"), which is the
    Fisher's definition, or over the gradients of whole batches ("batch"), which costs one pass a batch but mixes in the batch size: the
    mean of many gradients is mostly their common part.

    It misleads away from a minimum (the first-order term is left out), where weights compensate for each other (off-diagonal terms are
    left out), and with few samples. It sums squares, so it is driven by the samples with the largest gradients.

    Args:
        per: "sample" or "batch".
        max_samples: Most samples that are differentiated one by one, taken evenly from all batches.

    Source:
        LeCun, Denker and Solla 1989, Optimal Brain Damage, eq. 5, with the Fisher diagonal for the Hessian's as in Theis et al. 2018,
        arXiv:1801.05787. Deviations: weights, not feature maps, carry the gradients; the slices of all coupled layers count.
    """

    per: str = "sample"
    max_samples: int = 128
    name: str = "fisher"
    needs: frozenset[str] = field(default=frozenset({"gradients"}), init=False)

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise InputError(f"Expected per to be one of {', '.join(PER)}; found {self.per!r}.")
        if self.max_samples < 1:
            raise InputError(f"Expected max_samples to be at least 1, found {self.max_samples!r}.")

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Differentiate the loss of every sample (or batch) once."""
        calibration = Calibration.of(self, context)
        if self.per == "sample":
            samples = _evenly([sample for batch in calibration.batches for sample in samples_of(batch)], self.max_samples)
            calibration = dataclasses.replace(calibration, batches=samples)
        count = len(calibration.batches)
        names = dict(differentiable_parameters(calibration.model))
        inside = parameters_by_block((block.id for block in graph.blocks), names)
        blocks = dict.fromkeys(inside, 0.0)
        atoms = {group.id: np.zeros(group.atoms) for group in graph.prunable}
        influence = BlockInfluence(graph, calibration.model)
        for index in range(count):
            with influence.measured(), _naming_batch(self.per):
                products = weight_times_gradient(calibration, index)
            for group, values in group_importance(products, graph.prunable, "l2").items():
                atoms[group] += values**2
            squares = {name: float(product.double().square().sum()) for name, product in products.items()}
            for block, members in inside.items():
                blocks[block] += sum(squares.get(name, 0.0) for name in members)
        halved = 0.5 / count
        return Ranking(
            scores=half_saturation({block: total * halved for block, total in blocks.items()}),
            scorer=self.name,
            channel_scores={group: tuple(significant(value) for value in (total * halved).tolist()) for group, total in atoms.items()},
            comparable_channels=True,
            removal_scores=influence.scores,
            seed=context.seed,
            notes=(
                f"Diagonal empirical Fisher over the gradients of {count} {'samples' if self.per == 'sample' else 'batches'}.",
                REMOVAL_NOTE,
            ),
        )


@contextlib.contextmanager
def _naming_batch(per: str) -> Iterator[None]:
    """Name `fisher_batch` in the error of a loss that fails on a batch of one sample."""
    try:
        yield
    except ScoringError as error:
        if per != "sample":
            raise
        raise ScoringError(
            f"{error} Scorer 'fisher' calls loss_fn with batches of one sample. If the loss needs several (batch norm in training mode, a "
            "contrastive loss), use 'fisher_batch', which is FisherScorer(per=\"batch\")."
        ) from error


def fisher_batch() -> FisherScorer:
    """As `fisher`, with the squared gradients of whole batches: much faster, and biased by the batch size."""
    return FisherScorer(per="batch", name="fisher_batch")


def samples_of(batch: Any) -> list[Any]:
    """Split a batch into batches of one along the first dimension of its tensors; containers keep their type.

    Raises:
        InputError: If there is no tensor, or the tensors disagree about the number of samples.
    """
    sizes = {tuple(tensor.shape[:1]) for tensor in tensors_of(batch)}
    if len(sizes) != 1 or sizes == {()}:
        raise InputError(
            "Scorer 'fisher' takes gradients of single samples, and cannot split a batch whose tensors have "
            f"{sorted(sizes) or 'no'} as first dimensions; expected one number of samples. Use 'fisher_batch' for such data."
        )
    ((size,),) = sizes
    return [mapped(batch, lambda tensor, place=index: tensor[place : place + 1]) for index in range(size)]


def _evenly(samples: list[Any], most: int) -> list[Any]:
    if len(samples) <= most:
        return samples
    return [samples[place] for place in np.linspace(0, len(samples) - 1, most).round().astype(int).tolist()]
