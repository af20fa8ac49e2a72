"""The change of a denoiser from one noise level to the next: the burden by which intervals and sizes can be balanced.

All processes are brought to one coordinate, the angle phi = atan2(noise, signal) in (0, pi / 2), in which
y = cos(phi) * x_0 + sin(phi) * epsilon. The flow that a denoiser defines there is u(y, phi) = cos(phi) * epsilon_hat - sin(phi) * x_0_hat.
A denoiser whose predictions stay as they are along a path turns (y, u) by the angle that was walked, and nothing else.

Source:
    Two monitors of arXiv:2606.06477 (complexity-balanced splitting), as far as its abstract describes them: the acceleration of the
    path and the Dirichlet energy of the flow. The coordinate, and that the turn alone counts as no acceleration, are of this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxyprune.diffusion.process.noise_schedule import FloatArray, NoiseSchedule
from proxyprune.errors import InputError

MONITORS = ("acceleration", "energy")
_NUDGE = 0.01  # of the standard deviation of y, for the derivative of the flow in a random direction

Flow = Callable[[Tensor, int], Tensor]
"""The flow u at y and a timestep; [images, ...] to the same shape."""


def flow_of(prediction: str, state: Tensor, predicted: Tensor, signal: float, noise: float) -> Tensor:
    """Return the flow u in the angle coordinate, from what a denoiser predicts.

    Args:
        prediction: What the network predicts: "epsilon", "v_prediction", "sample" or "flow".
        state: The noisy images x = signal * x_0 + noise * epsilon, [images, ...].
        predicted: The network's output for them, of the same shape.
        signal: Factor of the clean image, above 0.
        noise: Factor of the noise, above 0.
    """
    if prediction == "epsilon":
        epsilon, image = predicted, (state - noise * predicted) / signal
    elif prediction == "sample":
        epsilon, image = (state - signal * predicted) / noise, predicted
    elif prediction == "v_prediction":
        epsilon, image = noise * state + signal * predicted, signal * state - noise * predicted
    else:  # straight paths: predicted = epsilon - x_0, and signal + noise = 1
        epsilon, image = state + signal * predicted, state - noise * predicted
    radius = math.hypot(signal, noise)
    return (signal * epsilon - noise * image) / radius


def angles(schedule: NoiseSchedule) -> FloatArray:
    """Angle of every timestep in radians, [T], rising from the clean end."""
    return np.asarray(np.arctan2(schedule.noise, schedule.signal))


def acceleration(flow: Flow, state: Tensor, timestep: int, neighbour: int, phi: FloatArray) -> Tensor:
    """Root mean square over all elements of the acceleration of the path, without the turn that constant predictions make.

    Args:
        flow: The flow.
        state: y at the timestep, [images, ...].
        timestep: Where the path begins.
        neighbour: Where it is looked at again.
        phi: Angle of every timestep.
    """
    step = float(phi[neighbour] - phi[timestep])
    here = flow(state, timestep)
    turned = math.cos(step) * state + math.sin(step) * here
    expected = math.cos(step) * here - math.sin(step) * state
    return ((flow(turned, neighbour) - expected) / step).square().mean().sqrt()


def energy(flow: Flow, state: Tensor, timestep: int, generator: torch.Generator) -> Tensor:
    """Root of the Dirichlet energy per element: the Frobenius norm of the flow's Jacobian over the root of its size, by random directions.

    Args:
        flow: The flow.
        state: y at the timestep, [images, ...].
        timestep: The noise level.
        generator: Of the directions.
    """
    direction = torch.randn(state.shape, generator=generator).to(state.device)
    return ((flow(state + _NUDGE * direction, timestep) - flow(state, timestep)) / _NUDGE).square().mean().sqrt()


@dataclass(frozen=True)
class Complexity:
    """The complexity of a denoiser by noise level.

    Attributes:
        monitor: "acceleration" or "energy".
        phi: Angles at which it was measured, in radians, rising.
        values: The monitor at these angles, above 0.
        exponent: The density of the burden is the monitor to this power.
    """

    monitor: str
    phi: tuple[float, ...]
    values: tuple[float, ...]
    exponent: float

    def __post_init__(self) -> None:
        if len(self.phi) != len(self.values) or not self.phi or not all(math.isfinite(value) and value > 0 for value in self.values):
            raise InputError(f"Expected a finite {self.monitor} above 0 at each of {len(self.phi)} noise levels, found {self.values}.")

    def burden(self, schedule: NoiseSchedule) -> FloatArray:
        """Share of the whole burden that each timestep carries, [T]; they sum to 1.

        Args:
            schedule: The process. Beyond the measured angles the density stays what it is at the last one.
        """
        phi = angles(schedule)
        density = np.exp(self.exponent * np.interp(phi, self.phi, np.log(self.values)))
        found = density * np.gradient(phi)
        return np.asarray(found / found.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"monitor": self.monitor, "phi": list(self.phi), "values": list(self.values), "exponent": self.exponent}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Complexity:
        """Read what `to_dict` wrote."""
        return cls(str(data["monitor"]), tuple(map(float, data["phi"])), tuple(map(float, data["values"])), float(data["exponent"]))
