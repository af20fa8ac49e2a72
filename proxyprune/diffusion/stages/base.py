"""Stage 1: one denoiser for all timesteps, trained here or taken over from another run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from safetensors.torch import save_file
from torch import Tensor

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.process.objective import Objective
from proxyprune.diffusion.records import read_json, read_record, read_weights
from proxyprune.diffusion.run_folder import BaseFolder, RunFolder
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.run_check import fingerprint_of
from proxyprune.diffusion.stages.sample_grids import SampleGrids, affordable_steps_and_grids
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.ledger import Entry, Ledger, training_macs
from proxyprune.diffusion.training.loop import Loop
from proxyprune.diffusion.training.stage_lock import claimed
from proxyprune.diffusion.training.state import Phase, Training
from proxyprune.diffusion.training.trackers import rewind
from proxyprune.errors import ComputeError, InputError, TrainingError
from proxyprune.support.files import to_disk, write_json


@dataclass(frozen=True)
class BaseStage:
    """The base of a run.

    Attributes:
        setup: The run.
        folder: Where the base goes.
        source: Another run whose base is taken over instead of training one, or None.
    """

    setup: Setup
    folder: BaseFolder
    source: RunFolder | None = None

    def run(self) -> dict[str, Tensor]:
        """Train the base or take it over, and return its averaged weights; a finished base is only read."""
        accelerator = self.setup.accelerator
        if read_record(self.folder.result, "ledger") is None:
            with claimed(self.folder.path, mine=accelerator.is_main_process):
                if read_json(self.folder.result) is None:  # another job may have trained it meanwhile
                    if self.source is None:
                        self._train()
                    else:
                        self._take_over(self.source)
        accelerator.wait_for_everyone()  # also for a process that found the base there because another was quicker
        return read_weights(self.folder.weights)

    def check_source(self) -> None:
        """Reject a base of another run, unless this run would train the same one and it is finished.

        Raises:
            InputError: If it is another.
            TrainingError: If it is not finished.
            ComputeError: If it cost more than this run may.
        """
        if self.source is None:
            return
        source, config = self.source, self.setup.config
        other = StepAdaptiveConfig.from_json(source.config)
        for part in ("model", "weights", "seed", "data", "noise", "base"):
            if (value := getattr(other, part)) != getattr(config, part):
                raise InputError(f"The base in {source.path} was trained with another {part}: {value!r}. Train one for this run.")
        if (size := other.run.batch_size) != config.run.batch_size:
            advice = "Take that, or train one for this run."
            raise InputError(f"The base in {source.path} was trained with another run.batch_size: {size}. {advice}")
        if fingerprint_of(source) not in (None, self.setup.data.fingerprint()):
            raise InputError(f"The base in {source.path} was trained on other images. Train one for this run.")
        if read_record(source.base.result, "ledger") is None:
            command = f"proxyprune diffusion train --out {source.path} --stage base"
            raise TrainingError(f"The base in {source.path} is not finished. Finish it first: {command}")
        spent = base_ledger(source.base).spent_macs
        if spent > self.setup.limit_macs:
            raise ComputeError(
                f"The base in {source.path} cost {spent:,} training MACs, and all of this run may cost {self.setup.limit_macs:,}. Raise "
                "compute.reference_steps (--steps)."
            )

    def _take_over(self, source: RunFolder) -> None:
        self.check_source()
        if self.setup.accelerator.is_main_process:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.base.weights, self.folder.weights)
            shutil.copyfile(source.base.result, self.folder.result)

    def _train(self) -> None:
        setup, stage, run = self.setup, self.setup.config.base, self.setup.config.run
        allowance = int(setup.config.compute.base_share * setup.limit_macs)
        steps = affordable_steps_and_grids(setup, allowance, setup.base_macs)
        training = Training.begin(setup.base_model(), stage, Ledger(allowance))
        training.phase = Phase(0, 0, steps, (0.0, 1.0))
        found = Checkpoint.read(self.folder.path)
        if setup.accelerator.is_main_process:
            rewind(self.folder.path, 0 if found is None else found.record["step"])
        if found is not None:
            training.restore(found, setup.accelerator.process_index)
        draws = setup.draws("base", stage, 0, len(setup.schedule.times) - 1)
        preview = SampleGrids(setup, self.folder, setup.base_macs)
        Loop("base", self.folder, stage, run, draws, Objective(setup.calling), setup.accelerator, preview).train(training)
        images = training.step * run.batch_size
        ledger = training.ledger.add(Entry("base", None, "training", images, training_macs(setup.base_macs, images)))
        if setup.accelerator.is_main_process:
            self._save(training, ledger)

    def _save(self, training: Training, ledger: Ledger) -> None:
        """Write the weights, then the record: a base with a record is complete."""
        weights = {name: value.contiguous().clone() for name, value in training.ema.best(training.model).items()}
        self.folder.path.mkdir(parents=True, exist_ok=True)
        fresh = self.folder.weights.with_name(f".{self.folder.weights.name}.saving")
        save_file(weights, fresh)
        fresh.replace(self.folder.weights)
        to_disk(self.folder.path)
        record = {"schema": 1, "steps": training.step, "macs": self.setup.base_macs, "ledger": ledger.to_dict()}
        write_json(self.folder.result, record)


def base_ledger(folder: BaseFolder) -> Ledger:
    """Return the cost of a finished base; an empty ledger before."""
    record = read_record(folder.result, "ledger")
    return Ledger() if record is None else Ledger.from_dict(record["ledger"])
