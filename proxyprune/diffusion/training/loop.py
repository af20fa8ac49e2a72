"""The training loop of a stage: steps that are logged, checkpointed, and stopped when the loss diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from proxyprune.diffusion.config.run_config import RunConfig, StageConfig
from proxyprune.diffusion.process.objective import Objective
from proxyprune.diffusion.run_folder import StageFolder
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.diffusion.training.batches import Draws
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.interruption import TrainingStopped, Watch
from proxyprune.diffusion.training.state import Training
from proxyprune.diffusion.training.step import TrainingStep
from proxyprune.errors import DivergedError
from proxyprune.support.progress import SECONDS_BETWEEN_LINES, bar
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
        preview: Called every `run.sample_every` steps with the training state, or None.
        seconds_between_lines: Least time between two lines of progress where there is no terminal.
    """

    name: str
    folder: StageFolder
    stage: StageConfig
    run: RunConfig
    draws: Draws
    objective: Objective
    accelerator: Accelerator
    preview: Callable[[Training], None] | None = None
    seconds_between_lines: float = SECONDS_BETWEEN_LINES

    def save(self, training: Training) -> None:
        """Write a checkpoint."""
        found = training.checkpoint(self.accelerator)
        if self.accelerator.is_main_process:
            found.write(self.folder.path)

    def train(self, training: Training) -> None:
        """Run the steps that are left of the current phase, then write a checkpoint.

        Raises:
            DivergedError: If the loss, its gradient or a weight is not finite, or the loss is far above its best.
            TrainingStopped: If SIGINT or SIGTERM came; the checkpoint of the last step is written before.
        """
        phase = training.phase
        if training.step >= phase.stop:
            return
        training.model.train()
        started, done = time.perf_counter(), training.step
        main = self.accelerator.is_main_process
        shown = bar(self.name, phase.stop, shown=main, seconds_between_lines=self.seconds_between_lines)
        watch = Watch(self.accelerator, self.run.checkpoint_minutes)
        prepared = TrainingStep.prepared(training, self.objective, self.stage.clip, self.accelerator)
        with watch, prepared as step, shown as advance:
            while training.step < phase.stop:
                rate = learning_rate(self.stage, phase.at(training.step))
                loss = self._step(step, rate)
                training.step += 1
                self._judge(training, loss)
                speed = (training.step - done) * self.run.batch_size / (time.perf_counter() - started)
                advance(training.step, f"loss {training.smooth[0]:.4f}  {speed:.0f} images/s")
                values = {"loss": loss, "learning_rate": rate, "images_per_s": round(speed, 1), "phase": phase.number}
                self._after(training, values, watch)
        training.model.eval()

    def _step(self, step: TrainingStep, rate: float) -> float:
        training = step.training
        batch = self.draws.batch(training.step, self.accelerator.device)
        outcome = step.take(batch, rate, derived_seed(self.draws.seed, self.name, "dropout", training.step, self.draws.rank))
        if outcome.problem is not None:
            raise self._diverged(training, outcome.problem)
        return outcome.loss

    def _after(self, training: Training, values: dict[str, Any], watch: Watch) -> None:
        step, last = training.step, training.step == training.phase.stop
        if step % self.run.log_every == 0 or last:
            self.accelerator.log({f"{self.name}/{key}": value for key, value in values.items()}, step=step)
        if self.preview is not None and self.run.sample_every and step % self.run.sample_every == 0:
            self.preview(training)  # first, so that a checkpoint of this step has its cost
            training.model.train()
        due, stops = watch.decision()
        if due or last or step % self.run.checkpoint_every == 0:
            self._checkpoint(training)
            watch.saved()
        if stops:
            raise TrainingStopped(
                f"Stopped {self.name} at step {step:,} of {training.phase.stop:,}; the checkpoint of this step is written to "
                f"{self.folder.checkpoint}."
            )

    def _checkpoint(self, training: Training) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in training.model.parameters()):
            raise self._diverged(training, "some weights are not finite")
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
        path = self.folder.checkpoint
        found = Checkpoint.read(self.folder.path)
        if found is None:
            good = "There is no checkpoint yet."
        elif found.record["step"] == training.step:
            good = f"The checkpoint {path} was written right before the divergence; resuming from it diverges again."
        else:
            good = f"The last good checkpoint is {path}, step {found.record['step']}."
        return DivergedError(
            f"Training of {self.name} diverged at step {training.step}: {what}. {good} In a new folder, lower the learning rate of that "
            "stage, lengthen its warmup, or clip gradients (clip)."
        )
