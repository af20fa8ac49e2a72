"""The state that changes while a stage is trained, written to checkpoints and read again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from proxyprune.diffusion.config.run_config import StageConfig
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.diffusion.training.averaged_weights import AveragedWeights
from proxyprune.diffusion.training.checkpoint import Checkpoint, optimizer_state, restore_optimizer, rng_state
from proxyprune.diffusion.training.ledger import Ledger


@dataclass(frozen=True)
class Phase:
    """A stretch of training between two cuts.

    Attributes:
        number: Cuts before it.
        start: Step of the stage at which it begins.
        stop: Step at which it ends.
        progress: Share of the stage's compute that is spent at its start and at its end; the learning rate follows it.
    """

    number: int
    start: int
    stop: int
    progress: tuple[float, float]

    def at(self, step: int) -> float:
        """Progress at a step."""
        begin, end = self.progress
        return begin + (end - begin) * (step - self.start) / max(1, self.stop - self.start)


@dataclass
class Training:
    """The state that changes while a stage is trained.

    Attributes:
        model: The network.
        ema: Its averaged weights.
        optimizer: AdamW, or what was carried over a cut.
        step: Steps done in this stage.
        phase: The phase that it is in.
        ledger: What this stage has spent on anything but the phase that is running.
        smooth: Smoothed loss, and the lowest that it has been.
        scaler: State of the gradient scaler (fp16), or {}.
    """

    model: nn.Module
    ema: AveragedWeights
    optimizer: Optimizer
    step: int = 0
    phase: Phase = field(default_factory=lambda: Phase(0, 0, 0, (0.0, 0.0)))
    ledger: Ledger = field(default_factory=Ledger)
    smooth: tuple[float, float] = (math.inf, math.inf)
    scaler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, model: nn.Module, stage: StageConfig, ledger: Ledger) -> Training:
        """Start a stage."""
        return cls(model, AveragedWeights(model, stage.ema), new_optimizer(model, stage), ledger=ledger)

    def checkpoint(self, accelerator: Accelerator) -> Checkpoint:
        """Everything, in a form that can be written; to be called by every process."""
        tensors, plain = optimizer_state(self.optimizer, self.model)
        state = accelerator.gather(rng_state().to(accelerator.device).unsqueeze(0)).cpu()
        record = {
            "step": self.step,
            "phase": {"number": self.phase.number, "start": self.phase.start, "stop": self.phase.stop, "progress": self.phase.progress},
            "ledger": self.ledger.to_dict(),
            "smooth": [value if math.isfinite(value) else None for value in self.smooth],
            "ema_updates": self.ema.updates,
            "optimizer": plain,
            "scaler": self.scaler,
        }
        return Checkpoint(self.model.state_dict(), self.ema.state, tensors, state, record)

    def restore(self, found: Checkpoint, rank: int) -> None:
        """Read what `checkpoint` wrote, for a network of the right shape."""
        record = found.record
        self.model.load_state_dict(dict(found.model))
        self.ema.load(found.ema, record["ema_updates"])
        restore_optimizer(self.optimizer, self.model, found.optimizer, record["optimizer"])
        phase = record["phase"]
        self.step = record["step"]
        self.phase = Phase(phase["number"], phase["start"], phase["stop"], (phase["progress"][0], phase["progress"][1]))
        self.ledger = Ledger.from_dict(record["ledger"])
        first, second = (math.inf if value is None else value for value in record["smooth"])
        self.smooth = (first, second)
        self.scaler = record["scaler"]
        torch.set_rng_state(found.rng[min(rank, len(found.rng) - 1)].clone())


def new_optimizer(model: nn.Module, stage: StageConfig) -> AdamW:
    """AdamW; the fused kind where there is one."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters)
    return AdamW(parameters, stage.learning_rate, betas=stage.betas, weight_decay=stage.weight_decay, fused=fused)
