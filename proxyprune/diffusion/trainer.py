"""`StepAdaptiveTrainer`: base, intervals, budgets, experts, pipeline; each stage once, each resumable."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.process.intervals import Intervals, bins_of
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.process.objective import Objective
from proxyprune.diffusion.records import read_json, read_record, read_weights
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.pipeline import StepAdaptivePipeline
from proxyprune.diffusion.sampling.pipeline_record import Blueprint
from proxyprune.diffusion.setup import Setup, make_accelerator
from proxyprune.diffusion.stages.expert import NETWORK, RESULT, Specialist
from proxyprune.diffusion.stages.judging import rehearse_judging, scoring_macs
from proxyprune.diffusion.stages.layout import LAYOUT, Layout, check_size, decide, layout_record, read_layout
from proxyprune.diffusion.stages.loss_by_snr import NAME as LOSSES, evaluation_macs, measure_bins, write_losses
from proxyprune.diffusion.stages.preview import Preview, affordable_steps_and_grids
from proxyprune.diffusion.stages.trials import trial_macs
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.ledger import Entry, Ledger, affordable_steps, split_allowance, training_macs
from proxyprune.diffusion.training.loop import Loop
from proxyprune.diffusion.training.stage_lock import claimed
from proxyprune.diffusion.training.state import Phase, Training
from proxyprune.diffusion.training.trackers import rewind
from proxyprune.errors import ComputeError, InputError, StorageError, TrainingError
from proxyprune.support.files import to_disk, write_json, write_text

CONFIG, IMAGES, WEIGHTS, LEDGER, PIPELINE = "config.json", "images.json", "base.safetensors", "ledger.json", "pipeline"
_FREE = {
    "run": ("cpu", "checkpoint_every", "log_every", "trackers", "divergence", "loss_bins", "loss_images"),
    "pruning": ("accept_unreliable",),
}
"""Settings that may differ when a run goes on."""


class StepAdaptiveTrainer:
    """Trains a step-adaptive pipeline into a folder.

    A run that was killed goes on where it was when it is started again with the same configuration and folder. Every stage can be run
    alone, and experts in jobs of their own.

    Args:
        config: Everything that decides what is computed.
        folder: Where the run lives; created.
        base: Folder of another run whose base (and its cost) is taken over instead of training one.
        accelerator: accelerate's Accelerator; made from the configuration when left out.

    Raises:
        InputError: If data or network cannot be used; before anything is trained.
        StorageError: If the folder belongs to another run.
    """

    def __init__(self, config: StepAdaptiveConfig, folder: str | Path, *, base: str | Path | None = None, accelerator: Any = None) -> None:
        self.config = config
        self.folder = Path(folder)
        self._base_run = None if base is None else Path(base)
        check_folder(self.folder, config)
        self.accelerator = accelerator or make_accelerator(config, self.folder)
        self.setup = Setup.of(config, self.accelerator)
        new = read_json(self.folder / "base" / RESULT) is None
        _check_compute(self.setup, rehearse_judging(self.setup) if new and config.cuts else 1.0)
        _check_data(self.folder, self.setup)
        if new and self._base_run is not None:
            self._check_base(self._base_run)
        if self.accelerator.is_main_process:
            write_text(self.folder / CONFIG, config.to_text())
            write_json(self.folder / IMAGES, self.setup.data.fingerprint())
        self.accelerator.wait_for_everyone()

    def train(self) -> StepAdaptivePipeline:
        """All stages."""
        self.train_base()
        layout = self.layout()
        if self.config.compute.base_share < 1.0:
            for index in range(len(layout.members)):
                self.train_expert(index)
        return self.assemble()

    def train_base(self) -> dict[str, Tensor]:
        """Stage 1: one denoiser for all timesteps; returns its (averaged) weights."""
        place = self.folder / "base"
        if read_record(place / RESULT, "ledger") is None:
            with claimed(place, mine=self.accelerator.is_main_process):
                if read_json(place / RESULT) is None:  # another job may have trained it meanwhile
                    if self._base_run is not None:
                        self._adopt(self._base_run, place)
                    else:
                        self._train_base(place)
        self.accelerator.wait_for_everyone()  # also for a process that found the base there because another was quicker
        return read_weights(place / WEIGHTS)

    def _train_base(self, place: Path) -> None:
        stage, run = self.config.base, self.config.run
        allowance = int(self.config.compute.base_share * self.setup.limit_macs)
        steps = affordable_steps_and_grids(self.setup, allowance, self.setup.base_macs)
        training = Training.begin(self.setup.base_model(), stage, Ledger(allowance))
        training.phase = Phase(0, 0, steps, (0.0, 1.0))
        found = Checkpoint.read(place)
        if self.accelerator.is_main_process:
            rewind(place, 0 if found is None else found.record["step"])
        if found is not None:
            training.restore(found, self.accelerator.process_index)
        draws = self.setup.draws("base", stage, 0, len(self.setup.schedule.times) - 1)
        preview = Preview(self.setup, place, self.setup.base_macs)
        Loop("base", place, stage, run, draws, Objective(self.setup.calling), self.accelerator, preview).train(training)
        images = training.step * run.batch_size
        ledger = training.ledger.add(Entry("base", None, "training", images, training_macs(self.setup.base_macs, images)))
        if self.accelerator.is_main_process:
            weights = {name: value.contiguous().clone() for name, value in training.ema.best(training.model).items()}
            place.mkdir(parents=True, exist_ok=True)
            save_file(weights, place / f".{WEIGHTS}.saving")
            (place / f".{WEIGHTS}.saving").replace(place / WEIGHTS)
            to_disk(place)
            record = {"schema": 1, "steps": training.step, "macs": self.setup.base_macs, "ledger": ledger.to_dict()}
            write_json(place / RESULT, record)

    def _check_base(self, source: Path) -> None:
        """Refuse the base of another run, unless it is finished and the one that this run would train.

        Raises:
            InputError: If it is another.
            TrainingError: If it is not finished.
            ComputeError: If it cost more than this run may.
        """
        other = StepAdaptiveConfig.from_json(source / CONFIG)
        for part in ("model", "weights", "seed", "data", "noise", "base"):
            if getattr(other, part) != getattr(self.config, part):
                raise InputError(f"The base in {source} was trained with another {part}: {getattr(other, part)!r}. Train one for this run.")
        if other.run.batch_size != self.config.run.batch_size:
            size = other.run.batch_size
            raise InputError(f"The base in {source} was trained with another run.batch_size: {size}. Take that, or train one for this run.")
        if _fingerprint(source) not in (None, self.setup.data.fingerprint()):
            raise InputError(f"The base in {source} was trained on other images. Train one for this run.")
        record = read_record(source / "base" / RESULT, "ledger")
        if record is None:
            raise TrainingError(
                f"The base in {source} is not finished. Finish it first: proxyprune diffusion train --out {source} --stage base"
            )
        spent = Ledger.from_dict(record["ledger"]).spent_macs
        if spent > self.setup.limit_macs:
            raise ComputeError(
                f"The base in {source} cost {spent:,} training MACs, and all of this run may cost {self.setup.limit_macs:,}. Raise "
                "compute.reference_steps (--steps)."
            )

    def _adopt(self, source: Path, place: Path) -> None:
        """Take over the base of another run."""
        self._check_base(source)
        if self.accelerator.is_main_process:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / "base" / WEIGHTS, place / WEIGHTS)
            shutil.copyfile(source / "base" / RESULT, place / RESULT)

    def layout(self) -> Layout:
        """Stage 1 1/2: intervals and budgets, measured on the base where that is asked for; decided once, then read back."""
        found = read_layout(self.folder, self.setup)
        self.accelerator.wait_for_everyone()
        if found is not None:
            return found
        weights = self.train_base()
        layout = decide(self.setup, weights, self.setup.limit_macs - self._base_ledger().spent_macs)
        if self.accelerator.is_main_process:
            write_json(self.folder / LAYOUT, layout_record(layout, self.setup.schedule.snr_db))
        self.accelerator.wait_for_everyone()
        return read_layout(self.folder, self.setup) or layout  # processes may differ in the last digit: one has decided

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
        parts = split_allowance(self._left(layout), self.config.compute.expert_weights or (1.0,) * count)
        fraction = layout.budgets.fractions[index]
        member, folder = layout.members[index], self._expert(index)
        return Specialist(self.setup, member, fraction, parts[index], weights, folder, layout.base_losses).run()

    def _expert(self, index: int) -> Path:
        return self.folder / f"expert-{index}"

    def _left(self, layout: Layout) -> int:
        """Compute that is left for all experts.

        Raises:
            TrainingError: If nothing is.
        """
        spent = self._base_ledger().spent_macs + layout.ledger.spent_macs
        left = self.setup.limit_macs - spent
        if left <= 0:
            raise TrainingError(
                f"Base and measuring cost {spent:,} of {self.setup.limit_macs:,} training MACs; nothing is left for experts. "
                f"In a new folder, measure with less (budgets.trial_steps, budgets.sizes); --base-from {self.folder} takes its base over."
            )
        return left

    def _base_ledger(self) -> Ledger:
        return Ledger.from_dict((read_record(self.folder / "base" / RESULT, "ledger") or {"ledger": Ledger().to_dict()})["ledger"])

    def ledger(self) -> Ledger:
        """What has been spent so far, against the full-size reference."""
        parts = [read_record(path, "ledger") for path in (self.folder / "base" / RESULT, self.folder / LAYOUT, *self._results())]
        return Ledger.merged(self.setup.limit_macs, [Ledger.from_dict(part["ledger"]) for part in parts if part is not None])

    def _results(self) -> list[Path]:
        return [self._expert(index) / RESULT for index in range(self.config.intervals.count)]

    def assemble(self) -> StepAdaptivePipeline:
        """Merge base, experts and layout into a pipeline.

        Raises:
            TrainingError: If an expert is not finished, or the ledger's limit was exceeded.
        """
        whole = self.config.compute.base_share >= 1.0
        records = [read_record(path, "macs", "ledger") for path in ([self.folder / "base" / RESULT] if whole else self._results())]
        if missing := [str(index) for index, record in enumerate(records) if record is None]:
            command = f"proxyprune diffusion train --out {self.folder} --interval {missing[0]}"
            raise TrainingError(f"Not finished yet: expert {', '.join(missing)}. Train each: {command}")
        layout, ledger = self.layout(), self.ledger()
        intervals = Intervals((), "none") if whole else layout.intervals
        if ledger.spent_macs > self.setup.limit_macs:
            raise TrainingError(f"The experts cost {ledger.spent_macs:,} training MACs, the full-size reference {self.setup.limit_macs:,}.")
        done = [record for record in records if record is not None]
        macs = tuple(record["macs"] for record in done)
        if whole:
            experts = Experts.of([self.setup.base_model(self.train_base())], macs)
            folders: list[Path | None] = [None]
        else:
            from proxyprune.diffusion.sampling.experts import load_expert

            places = [self._expert(index) / NETWORK for index in range(len(records))]
            params = tuple(record["params"] for record in done)
            experts = Experts(macs, params, lambda index: load_expert(places[index], self.setup.source.build))
            folders = list(places)
        experts.device = self.setup.device
        blueprint = Blueprint(
            intervals,
            self.setup.calling,
            self.setup.data.shape,
            self.setup.data.classes,
            macs,
            experts.params,
            self.setup.base_macs,
            self.setup.source.record,
            layout.budgets.notes,
        )
        pipeline = StepAdaptivePipeline(experts, blueprint, self.setup.default_sampler(), folders)
        pipeline._trained_with = training_scheduler(self.config.noise)
        if self.accelerator.is_main_process:
            pipeline.save_pretrained(self.folder / PIPELINE)
            write_json(self.folder / LEDGER, ledger.to_dict())
            self._compare_losses(layout, None if whole else experts)
        self.accelerator.wait_for_everyone()
        return pipeline

    def _compare_losses(self, layout: Layout, experts: Experts | None) -> None:
        """Held-out loss by noise level, of the base and of the experts; measured once."""
        run = self.config.run
        if run.loss_bins == 0 or read_json(self.folder / LOSSES) is not None:
            return
        bins, base = bins_of(layout.members, run.loss_bins), self.setup.base_model(read_weights(self.folder / "base" / WEIGHTS))
        found = measure_bins(self.setup, base, experts, bins, run.loss_images)
        macs = evaluation_macs(bins, run.loss_images, self.setup.base_macs, None if experts is None else experts.macs)
        write_losses(self.folder, found, run.loss_images, macs)


def _check_compute(setup: Setup, looks: float) -> None:
    """Tell what cannot be done before a base is trained: a target out of reach, measuring that eats all compute, stages without a step.

    Args:
        setup: The run.
        looks: How often its scorer looks at each image.

    Raises:
        TargetError: If the target cannot be met.
        ComputeError: If the base or an expert would not be trained for a single step.
        InputError: If the sampler cannot take so many steps.
    """
    config, compute = setup.config, setup.config.compute
    if affordable_steps(int(compute.base_share * setup.limit_macs), setup.base_macs, config.run.batch_size) < 1:
        raise ComputeError(
            f"{compute.base_share:.0%} of {compute.reference_steps} reference steps pay for no step of the base. Raise "
            "compute.reference_steps (--steps) or compute.base_share."
        )
    if compute.base_share >= 1.0:
        setup.sampler_snr()
        return
    left = setup.limit_macs - int(compute.base_share * setup.limit_macs)
    fractions = (min(config.budgets.sizes),) * config.intervals.count
    if "measured" in (config.intervals.method, config.budgets.method):
        setup.sampler_snr()
        check_size(setup, config.budgets.target)  # some expert will be as small
    else:
        fractions = decide(setup, None).budgets.fractions
    cost = 0
    if config.intervals.method == "measured":
        cost += training_macs(setup.base_macs, config.intervals.bins * config.intervals.images)
    if config.budgets.method == "measured" and config.intervals.count > 1:
        cost += trial_macs(setup, looks)
    if cost >= left:
        raise ComputeError(
            f"Measuring would cost {cost:,} training MACs; {left:,} are left after the base, and experts need some of them. Measure with "
            f"less (budgets.trial_steps, now {config.trial_steps}; budgets.sizes, budgets.trial_images, pruning.calibration_batches, "
            "intervals.images), or raise compute.reference_steps."
        )
    allowances = split_allowance(left - cost, compute.expert_weights or (1.0,) * config.intervals.count)
    for index, (fraction, allowance) in enumerate(zip(fractions, allowances, strict=True)):
        judged = scoring_macs(setup, looks) * config.pruning.rounds if fraction < 1.0 else 0
        if affordable_steps(max(0, allowance - judged), int(fraction * setup.base_macs), config.run.batch_size) < 1:
            raise ComputeError(
                f"Expert {index} would not be trained for a single step: its share is {allowance:,} training MACs, of which judging "
                f"channels takes {judged:,}. Raise compute.reference_steps (--steps), or judge with fewer images "
                "(pruning.calibration_batches, pruning.rounds)."
            )


def _check_data(folder: Path, setup: Setup) -> None:
    """Refuse to go on with other images: some that were trained on would be among those that are held out.

    Raises:
        StorageError: If the run began with others.
    """
    before, now = _fingerprint(folder), setup.data.fingerprint()
    if before is not None and before != now:
        raise StorageError(
            f"{folder} was begun with {before.get('train')} training and {before.get('held_out')} held-out images of "
            f"{setup.data.name}, which has other images now ({now['train']} and {now['held_out']}). Restore them, or choose another folder."
        )


def _fingerprint(folder: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_json(folder / IMAGES, "Remove it if the images are those that the run began with.")
    return found


def check_folder(folder: Path, config: StepAdaptiveConfig) -> None:
    """Refuse a folder that holds a run with other settings.

    Args:
        folder: The run.
        config: What is asked for.

    Raises:
        StorageError: If they differ in something that decides what is computed, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"The run's folder {folder} is a file. Choose another name.")
    if not (folder / CONFIG).is_file():
        return
    before, now = StepAdaptiveConfig.from_json(folder / CONFIG).to_dict(), config.to_dict()
    changed = sorted(_differences(before, now))
    if changed:
        raise StorageError(
            f"{folder} holds a run with other settings: {', '.join(changed)}. Go on with its own (--config {folder / CONFIG}), or choose "
            "another folder."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    found = set()
    for name, value in now.items():
        if isinstance(value, dict) and name != "options":
            free = _FREE.get(name, ())
            found |= {f"{name}.{key}" for key, item in value.items() if key not in free and before[name].get(key) != item}
        elif before.get(name) != value:
            found.add(name)
    return found
