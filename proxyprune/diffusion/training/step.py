"""One optimizer step, the same for the base, experts and trials: forward, backward, clip, update, average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from proxyprune.diffusion.process.objective import NoisyBatch, Objective
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.diffusion.training.state import Training


@dataclass(frozen=True)
class StepOutcome:
    """The result of one step.

    Attributes:
        loss: Of the batch, averaged over processes.
        problem: Why no weight was changed: the loss or its gradient is not finite. None after a normal step.
    """

    loss: float
    problem: str | None = None


class _Delegate(nn.Module):
    """Passes calls on to a network. Accelerate replaces the forward of the module that it prepares; this one takes the replacement."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **arguments: Tensor) -> Any:
        return self.network(**arguments)


@dataclass(frozen=True)
class TrainingStep:
    """Takes optimizer steps on a network; made by `prepared`.

    Attributes:
        training: The network, its averaged weights and its optimizer.
        objective: The loss.
        clip: Largest gradient norm, or None for no clipping.
        accelerator: accelerate's Accelerator.
        model: The network as accelerate calls it.
        optimizer: The optimizer as accelerate steps it.
    """

    training: Training
    objective: Objective
    clip: float | None
    accelerator: Accelerator = field(repr=False)
    model: nn.Module = field(repr=False)
    optimizer: Optimizer = field(repr=False)

    @classmethod
    @contextlib.contextmanager
    def prepared(cls, training: Training, objective: Objective, clip: float | None, accelerator: Accelerator) -> Iterator[TrainingStep]:
        """Prepare network and optimizer for the accelerator's processes and precision, and release them at the end.

        The network itself stays as it is, so that it can be traced, copied, cut and evaluated in float32 at any time.
        """
        model = accelerator.prepare_model(_Delegate(training.model))
        optimizer = accelerator.prepare_optimizer(training.optimizer)
        if accelerator.scaler is not None:  # the accelerator has one scaler for all stages; each stage starts with a new one
            state = training.scaler or torch.amp.GradScaler(accelerator.device.type).state_dict()
            accelerator.scaler.load_state_dict(state)
        try:
            yield cls(training, objective, clip, accelerator, model, optimizer)
        finally:
            accelerator.free_memory()

    def take(self, batch: NoisyBatch, rate: float, seed: int) -> StepOutcome:
        """Train on one batch; weights stay as they are if the loss or its gradient is not finite.

        Args:
            batch: This process's part of the batch.
            rate: Learning rate.
            seed: Of dropout.
        """
        torch.manual_seed(seed)
        for group in self.training.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            loss: Tensor = self.objective(self.model, batch)
        self.accelerator.backward(loss)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            return StepOutcome(value, f"the loss is {value}")
        norm = self._clipped()
        if norm is not None and not math.isfinite(norm):
            return StepOutcome(value, f"the loss is {value:.4g}, and its gradient has the norm {norm}")
        self.optimizer.step()
        self.training.ema.update(self.training.model)
        return StepOutcome(value)

    def _clipped(self) -> float | None:
        """Clip the gradient if configured and return its norm; None with a gradient scaler, which skips infinite gradients itself."""
        parameters = [parameter for parameter in self.training.model.parameters() if parameter.grad is not None]
        if self.clip is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, self.clip)
        else:
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        return None if self.accelerator.scaler is not None or norm is None else float(norm)
