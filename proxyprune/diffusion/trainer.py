"""`StepAdaptiveTrainer`: base, layout, experts, pipeline; each stage runs once and each can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.records import read_json, read_record
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.sampling.pipeline import StepAdaptivePipeline
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.base import BaseStage, base_ledger
from proxyprune.diffusion.stages.compute_check import check_compute
from proxyprune.diffusion.stages.expert import Specialist
from proxyprune.diffusion.stages.judging import rehearse_judging
from proxyprune.diffusion.stages.layout import Layout, decide, layout_record, read_layout
from proxyprune.diffusion.stages.merge import finished_records, merge
from proxyprune.diffusion.stages.run_check import check_images, check_settings
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.diffusion.training.ledger import Ledger, split_allowance
from proxyprune.diffusion.training.make_accelerator import make_accelerator
from proxyprune.errors import InputError, TrainingError
from proxyprune.support.files import write_json, write_text


class StepAdaptiveTrainer:
    """Trains a step-adaptive pipeline into a folder.

    A run that was killed resumes when it is started again with the same configuration and folder. Each stage can be run alone, and each
    expert in a job of its own.

    Args:
        config: Everything that decides what is computed.
        folder: Where the run lives; created.
        base: Folder of another run whose base (and its cost) is taken over instead of training one.
        accelerator: accelerate's Accelerator; made from the configuration by default.

    Raises:
        InputError: If data or network cannot be used; before anything is trained.
        StorageError: If the folder belongs to another run.
    """

    def __init__(
        self, config: StepAdaptiveConfig, folder: str | Path, *, base: str | Path | None = None, accelerator: Accelerator | None = None
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self.paths = RunFolder(self.folder)
        check_settings(self.paths, config)
        self.accelerator = accelerator or make_accelerator(config, self.paths)
        self.setup = Setup.of(config, self.accelerator)
        self._base = BaseStage(self.setup, self.paths.base, None if base is None else RunFolder(Path(base)))
        new = read_json(self.paths.base.result) is None
        check_compute(self.setup, rehearse_judging(self.setup) if new and config.cuts else 1.0)
        check_images(self.paths, self.setup.data)
        if new:
            self._base.check_source()
        if self.accelerator.is_main_process:
            write_text(self.paths.config, config.to_text())
            write_json(self.paths.images, self.setup.data.fingerprint())
        self.accelerator.wait_for_everyone()

    def train(self) -> StepAdaptivePipeline:
        """Run all stages."""
        self.train_base()
        layout = self.layout()
        if not self.setup.only_base:
            for index in range(len(layout.members)):
                self.train_expert(index)
        return self.assemble()

    def train_base(self) -> dict[str, Tensor]:
        """Stage 1: train one denoiser for all timesteps, and return its (averaged) weights."""
        return self._base.run()

    def layout(self) -> Layout:
        """Choose intervals and budgets (measured on the base if configured). Computed once, then read from disk."""
        found = read_layout(self.paths, self.setup)
        self.accelerator.wait_for_everyone()
        if found is not None:
            return found
        weights = self.train_base()
        layout = decide(self.setup, weights, self.setup.limit_macs - base_ledger(self.paths.base).spent_macs)
        if self.accelerator.is_main_process:
            write_json(self.paths.layout, layout_record(layout, self.setup.schedule.snr_db))
        self.accelerator.wait_for_everyone()
        return read_layout(self.paths, self.setup) or layout  # processes may differ in the last digit: that of the main process counts

    def train_expert(self, index: int) -> dict[str, Any]:
        """Stage 2 of one interval; jobs on several machines may each run one and share the folder.

        Args:
            index: Of the interval, from the clean end.

        Returns:
            The record of the expert: MACs, parameters, steps, ledger.

        Raises:
            InputError: If there is no such interval.
        """
        count = self.config.intervals.count
        if not 0 <= index < count:
            raise InputError(f"There are {count} intervals, 0 to {count - 1}; found {index}.")
        weights, layout = self.train_base(), self.layout()
        allowance = split_allowance(self.expert_macs(layout), self.config.compute.expert_weights or (1.0,) * count)[index]
        member, fraction = layout.members[index], layout.budgets.fractions[index]
        return Specialist(self.setup, member, fraction, allowance, weights, self.paths.expert(index), layout.base_losses).run()

    def expert_macs(self, layout: Layout) -> int:
        """Return the training MACs that are left for all experts after base and layout.

        Raises:
            TrainingError: If none are.
        """
        spent = base_ledger(self.paths.base).spent_macs + layout.ledger.spent_macs
        left = self.setup.limit_macs - spent
        if left <= 0:
            raise TrainingError(
                f"Base and measuring cost {spent:,} of {self.setup.limit_macs:,} training MACs; nothing is left for experts. "
                f"In a new folder, measure with less (budgets.trial_steps, budgets.sizes); --base-from {self.folder} reuses its base."
            )
        return left

    def ledger(self) -> Ledger:
        """Return what has been spent so far, against the full-size reference."""
        experts = (self.paths.expert(index).result for index in range(self.config.intervals.count))
        parts = [read_record(path, "ledger") for path in (self.paths.base.result, self.paths.layout, *experts)]
        return Ledger.merged(self.setup.limit_macs, [Ledger.from_dict(part["ledger"]) for part in parts if part is not None])

    def assemble(self) -> StepAdaptivePipeline:
        """Merge base, experts and layout into a pipeline.

        Raises:
            TrainingError: If an expert is not finished, or the ledger's limit was exceeded.
        """
        records = finished_records(self.setup, self.paths)
        return merge(self.setup, self.paths, records, self.layout(), self.ledger())
