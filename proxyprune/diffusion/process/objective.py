"""The target that a denoiser is trained to predict, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.noise_schedule import NoiseSchedule

Factors = tuple[Tensor, Tensor]
Losses = Sequence[tuple[float, float]]
"""(timestep, loss) of a network, by rising timestep."""

TARGETS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda image, noise, a, s: noise,
    "v_prediction": lambda image, noise, a, s: a * noise - s * image,  # Salimans and Ho 2022, arXiv:2202.00512, appendix D
    "sample": lambda image, noise, a, s: image,
    "flow": lambda image, noise, a, s: noise - image,  # Lipman et al. 2022, arXiv:2210.02747, straight paths
}
"""Prediction -> target from image, noise, and their factors a (signal) and s (noise)."""


def min_snr_weight(prediction: str, snr: Tensor, noise: Tensor, gamma: float) -> Tensor:
    """Loss weight min(SNR, gamma), brought from the clean image's error to that of the prediction; 1 where there is no signal at all.

    Sampling begins at that timestep, so it has to be trained, and a weight of 0 would leave it out.

    Source:
        Hang et al. 2023, arXiv:2303.09556, eq. 6 and section 3.4. For flow the same derivation: the clean image is x - s * prediction, so
        its squared error is s**2 times that of the prediction.

    Args:
        prediction: What the network predicts.
        snr: Signal-to-noise ratio, not in dB.
        noise: Factor of the noise.
        gamma: The cap.
    """
    capped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        weight = capped / snr.clamp(min=torch.finfo(snr.dtype).tiny)
    elif prediction == "v_prediction":
        weight = capped / (snr + 1.0)
    else:
        weight = capped * noise**2 if prediction == "flow" else capped
    return torch.where(snr > 0, weight, torch.ones_like(snr))


def relative_weight(losses: Losses, first: int, last: int, timesteps: int) -> Tensor:
    """Loss weight mean(L) / L(t), so that every timestep of first ... last counts alike in units of a network's own loss L.

    The sum that is minimised is then, to first order, the sum of log losses, as in learned uncertainty weighting
    (Kendall et al. 2018, arXiv:1705.07115, eq. 7; Karras et al. 2024, arXiv:2312.02696, section 2.2), with L measured instead of learned.

    Args:
        losses: (timestep, loss) of the network, by rising timestep; between them log-loss is linear.
        first: First timestep of the mean.
        last: Last timestep.
        timesteps: Length of the result.

    Returns:
        Weights [timesteps], float64.
    """
    times, values = zip(*losses, strict=True)
    curve = np.exp(np.interp(np.arange(timesteps), times, np.log(values)))
    return torch.from_numpy(curve[first : last + 1].mean() / curve)


@dataclass(frozen=True)
class NoisyBatch:
    """Images with noise on them and what is to be predicted.

    Attributes:
        noisy: [images, channels, height, width].
        times: Times that the network takes, [images].
        target: Like noisy.
        weight: Loss weight, [images].
        condition: Labels or embeddings, or None.
    """

    noisy: Tensor = field(repr=False)
    times: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    condition: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.noisy)


@dataclass(frozen=True)
class Process:
    """A noise schedule as tensors, which makes batches.

    Attributes:
        schedule: The process.
        gamma: Cap of the min-SNR weight, or None for a weight of 1.
        weights: Loss weight of every timestep in place of that, [timesteps], or None.
    """

    schedule: NoiseSchedule
    gamma: float | None = None
    weights: Tensor | None = field(default=None, repr=False)
    _tables: tuple[Tensor, Tensor, Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plan = self.schedule
        signal, noise = torch.from_numpy(plan.signal), torch.from_numpy(plan.noise)
        weight = torch.ones_like(signal) if self.weights is None else self.weights
        if self.gamma is not None:
            snr = torch.from_numpy(np.minimum(plan.signal**2 / np.maximum(plan.noise**2, 1e-30), 1e12))
            weight = min_snr_weight(plan.prediction, snr, noise, self.gamma)
        whole = bool(np.all(plan.times == np.round(plan.times)))
        times = torch.from_numpy(plan.times)
        tables = (signal.float(), noise.float(), times.long() if whole else times.float(), weight.float())
        object.__setattr__(self, "_tables", tables)

    def batch(self, images: Tensor, noise: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> NoisyBatch:
        """Put noise on images in [-1, 1] at the given timesteps."""
        signal, level, times, weight = (table.to(images.device)[timesteps] for table in self._tables)
        a, s = signal[:, None, None, None], level[:, None, None, None]
        target = TARGETS[self.schedule.prediction](images, noise, a, s)
        return NoisyBatch(a * images + s * noise, times, target, weight, condition)


@dataclass(frozen=True)
class Objective:
    """The loss of a network on a batch, with or without a teacher.

    Attributes:
        calling: How the network is called.
        teacher: Frozen network that is imitated, or None.
        teacher_weight: Share of the imitation in the loss.
    """

    calling: Calling
    teacher: nn.Module | None = field(default=None, repr=False)
    teacher_weight: float = 0.0

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        """Weighted mean squared error, a scalar."""
        predicted = self.calling.predict(model, batch.noisy, batch.times, batch.condition).float()
        loss = weighted_error(predicted, batch.target, batch.weight)
        if self.teacher is None or self.teacher_weight == 0.0:
            return loss
        with torch.no_grad():
            taught = self.calling.predict(self.teacher, batch.noisy, batch.times, batch.condition).float()
        return torch.lerp(loss, weighted_error(predicted, taught, batch.weight), self.teacher_weight)


def weighted_error(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of weight * mean squared error."""
    return ((predicted - target).square().flatten(1).mean(dim=1) * weight).mean()


def interval_loss(model: nn.Module, objective: Objective, batches: Sequence[NoisyBatch]) -> float:
    """Mean loss over fixed batches, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return math.fsum(float(objective(model, batch)) * len(batch) for batch in batches) / sum(map(len, batches))
