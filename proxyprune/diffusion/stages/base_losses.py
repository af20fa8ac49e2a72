"""Measurements of the base: loss and gradient by noise level, loss of a network in an interval, damage of pruning to a size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.diffusion.process.intervals import Interval, Intervals, bins_of, measured
from proxyprune.diffusion.process.noise_schedule import FloatArray
from proxyprune.diffusion.process.objective import Losses, Objective, Process, interval_loss
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.judging import training_batches
from proxyprune.diffusion.training.ledger import Entry, training_macs

_WEIGHT_BINS = 8  # of every interval
_PROJECTED = 2048  # dimensions that gradients are projected to; their angles are kept within a few hundredths


def affinity(setup: Setup, model: nn.Module) -> tuple[list[int], FloatArray, FloatArray, Entry]:
    """Loss and gradient of the base in bins of timesteps.

    Returns:
        Edges of the bins, gradients [bins, D] (randomly projected), losses [bins], and what that cost.
    """
    settings = setup.config.intervals
    total = len(setup.schedule.times)
    bins = min(settings.bins, total)
    edges = [round(total * k / bins) for k in range(bins + 1)]
    objective, process = Objective(setup.calling), Process(setup.schedule)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients, losses = [], []
    model.eval()
    for first, stop in itertools.pairwise(edges):
        (batch,) = training_batches(setup, process, first, stop - 1, settings.images, settings.images)
        loss = objective(model, batch)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients.append(_projected([gradient for gradient in found if gradient is not None], setup.config.seed))
        losses.append(float(loss.detach()))
    images = bins * settings.images
    entry = Entry("intervals", None, "measuring", images, training_macs(setup.base_macs, images))
    return edges, np.stack(gradients), np.asarray(losses), entry


def _projected(gradients: Sequence[Tensor], seed: int) -> FloatArray:
    """Return a gradient in fewer dimensions: signed sums over buckets, the same for every bin (count sketch)."""
    flat = torch.cat([gradient.detach().reshape(-1).cpu().double() for gradient in gradients])
    generator = torch.Generator().manual_seed(seed)
    bucket = torch.randint(0, _PROJECTED, (len(flat),), generator=generator)
    sign = torch.randint(0, 2, (len(flat),), generator=generator).double() * 2.0 - 1.0
    return np.asarray(torch.zeros(_PROJECTED, dtype=torch.float64).index_add_(0, bucket, flat * sign).numpy())


def measured_intervals(setup: Setup, model: nn.Module) -> tuple[Intervals, Entry]:
    """Intervals from the base's own loss and gradients."""
    edges, gradients, losses, entry = affinity(setup, model)
    settings = setup.config.intervals
    return measured(setup.schedule, settings.count, edges, gradients, losses, settings.loss_weight), entry


def losses_of_base(setup: Setup, model: nn.Module, members: Sequence[Interval]) -> tuple[Losses, Entry]:
    """Loss of the base by timestep, on training images: what experts are weighed against.

    Returns:
        (timestep, loss) in the middle of some bins of every interval, and what that cost.
    """
    objective, process, found = Objective(setup.calling), Process(setup.schedule), []
    bins = bins_of(members, _WEIGHT_BINS * len(members))
    each = max(1, setup.config.budgets.trial_images // _WEIGHT_BINS)
    for _, first, last in bins:
        batches = training_batches(setup, process, first, last, each)
        found.append(((first + last) / 2, interval_loss(model, objective, batches)))
    images = len(bins) * each
    return found, Entry("weights", None, "measuring", images, setup.base_macs * images)
