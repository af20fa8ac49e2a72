"""The training loop: forward, backward, clip, step, average; logged, checkpointed, and stopped when it diverges."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from proxyprune.diffusion.config.run_config import RunConfig, StageConfig
from proxyprune.diffusion.process.objective import Objective
from proxyprune.diffusion.training.averaged_weights import AveragedWeights
from proxyprune.diffusion.training.batches import Draws
from proxyprune.diffusion.training.checkpoint import NAME, Checkpoint, optimizer_state, restore_optimizer, rng_state
from proxyprune.diffusion.training.ledger import Ledger
from proxyprune.errors import DivergedError
from proxyprune.support.progress import bar
from proxyprune.support.seeds import derived_seed

_SMOOTHING = 0.98  # of the loss that divergence is judged by
_SETTLING_STEPS = 50


def learning_rate(stage: StageConfig, progress: float) -> float:
    """Warmup, then decay to a floor; `progress` is the share of the stage's compute that is spent, in [0, 1]."""
    if progress < stage.warmup:
        return stage.learning_rate * min(1.0, max(progress, 1e-3) / stage.warmup)
    if stage.decay == "constant":
        return stage.learning_rate
    left = (1.0 - progress) / (1.0 - stage.warmup) if stage.warmup < 1.0 else 0.0
    shape = left if stage.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
    return stage.learning_rate * (stage.floor + (1.0 - stage.floor) * shape)


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
    """What changes while a stage is trained.

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

    def checkpoint(self, accelerator: Any) -> Checkpoint:
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
        """The inverse of `checkpoint`, for a network of the right shape."""
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


@dataclass(frozen=True)
class Loop:
    """Trains a stage, phase by phase.

    Attributes:
        name: Of the stage, such as "base" or "expert-2".
        folder: Where checkpoints and logs of the stage go.
        stage: Optimizer settings.
        run: Checkpointing and logging.
        draws: Batches.
        objective: The loss.
        accelerator: accelerate's Accelerator.
        preview: Called now and then with the training state, or None.
    """

    name: str
    folder: Path
    stage: StageConfig
    run: RunConfig
    draws: Draws
    objective: Objective
    accelerator: Any
    preview: Callable[[Training], None] | None = None

    def save(self, training: Training) -> None:
        """Write a checkpoint."""
        found = training.checkpoint(self.accelerator)
        if self.accelerator.is_main_process:
            found.write(self.folder)

    def train(self, training: Training) -> None:
        """Run the steps that are left of the current phase, then write a checkpoint.

        Raises:
            DivergedError: If the loss is not finite any more, or far above its best.
        """
        phase = training.phase
        if training.step >= phase.stop:
            return
        training.model.train()
        started, done = time.perf_counter(), training.step
        shown = bar(self.name, phase.stop, shown=self.accelerator.is_main_process)
        with self._prepared(training) as (prepared, optimizer), shown as advance:
            while training.step < phase.stop:
                rate = learning_rate(self.stage, phase.at(training.step))
                loss = self._step(training, prepared, optimizer, rate)
                training.step += 1
                self._judge(training, loss)
                speed = (training.step - done) * self.run.batch_size / (time.perf_counter() - started)
                advance(training.step, f"loss {training.smooth[0]:.4f}  {speed:.0f} images/s")
                self._after(training, {"loss": loss, "learning_rate": rate, "images_per_s": round(speed, 1), "phase": phase.number})
        training.model.eval()

    @contextlib.contextmanager
    def _prepared(self, training: Training) -> Iterator[tuple[nn.Module, Any]]:
        """Network and optimizer as accelerate trains them; afterwards the network is as it was.

        Mixed precision puts another forward on the very network. It has to leave again before the network is traced, copied and cut.
        """
        own = training.model.__dict__.get("forward")
        prepared = self.accelerator.prepare_model(training.model)
        optimizer = self.accelerator.prepare_optimizer(training.optimizer)
        training.optimizer = optimizer.optimizer
        self._load_scaler(training)
        try:
            yield prepared, optimizer
        finally:
            self.accelerator._models.clear()
            self.accelerator._optimizers.clear()
            for name in ("forward", "_original_forward"):
                training.model.__dict__.pop(name, None)
            if own is not None:
                training.model.__dict__["forward"] = own

    def _step(self, training: Training, prepared: nn.Module, optimizer: Any, rate: float) -> float:
        batch = self.draws.batch(training.step, self.accelerator.device)
        torch.manual_seed(derived_seed(self.draws.seed, self.name, "dropout", training.step, self.draws.rank))
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            loss: Tensor = self.objective(prepared, batch)
        self.accelerator.backward(loss)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise self._diverged(training, f"the loss is {value}")
        norm = self._clipped(training)
        if norm is not None and not math.isfinite(norm):
            raise self._diverged(training, f"the loss is {value:.4g}, and its gradient has the norm {norm}")
        optimizer.step()
        training.ema.update(training.model)
        return value

    def _clipped(self, training: Training) -> float | None:
        """Norm of the gradient, which is clipped where that is asked for; None where a gradient scaler leaves out infinite ones itself."""
        parameters = [parameter for parameter in training.model.parameters() if parameter.grad is not None]
        if self.stage.clip is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, self.stage.clip)
        else:
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        return None if self.accelerator.scaler is not None or norm is None else float(norm)

    def _after(self, training: Training, values: dict[str, Any]) -> None:
        step, last = training.step, training.step == training.phase.stop
        if step % self.run.log_every == 0 or last:
            self.accelerator.log({f"{self.name}/{key}": value for key, value in values.items()}, step=step)
        if self.preview is not None and self.run.sample_every and step % self.run.sample_every == 0:
            self.preview(training)  # first, so that a checkpoint of this step has its cost
            training.model.train()
        if step % self.run.checkpoint_every == 0 or last:
            if not all(bool(torch.isfinite(parameter).all()) for parameter in training.model.parameters()):
                raise self._diverged(training, "some weights are no finite numbers any more")
            if self.accelerator.scaler is not None:
                training.scaler = self.accelerator.scaler.state_dict()
            self.save(training)

    def _judge(self, training: Training, loss: float) -> None:
        before, lowest = training.smooth
        smooth = loss if math.isinf(before) else _SMOOTHING * before + (1.0 - _SMOOTHING) * loss
        training.smooth = (smooth, min(lowest, smooth))
        if training.step > _SETTLING_STEPS and smooth > self.run.divergence * lowest:
            raise self._diverged(training, f"the smoothed loss is {smooth:.4g}, and was {lowest:.4g} at its best")

    def _diverged(self, training: Training, what: str) -> DivergedError:
        path = self.folder / NAME
        found = Checkpoint.read(self.folder)
        if found is None:
            good = "There is no checkpoint yet."
        elif found.record["step"] == training.step:
            good = f"The checkpoint {path} was written right before, so it leads here again."
        else:
            good = f"The last good checkpoint is {path}, step {found.record['step']}."
        return DivergedError(
            f"Training of {self.name} diverged at step {training.step}: {what}. {good} In a new folder, lower the learning rate of that "
            "stage, lengthen its warmup, or clip gradients (clip)."
        )

    def _load_scaler(self, training: Training) -> None:
        if self.accelerator.scaler is not None:  # a stage begins with a new one, whatever was trained before in this process
            state = training.scaler or torch.amp.GradScaler(self.accelerator.device.type).state_dict()
            self.accelerator.scaler.load_state_dict(state)
