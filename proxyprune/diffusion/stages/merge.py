"""The last stage: base, experts and layout become a pipeline, and their losses are compared."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.networks import record_of
from proxyprune.diffusion.process.intervals import Intervals, bins_of
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.records import read_json, read_record, read_weights
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.sampling.experts import Experts, load_expert
from proxyprune.diffusion.sampling.pipeline import StepAdaptivePipeline
from proxyprune.diffusion.sampling.pipeline_record import Blueprint, Provenance
from proxyprune.diffusion.sampling.standard_files import write_standard_files
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.layout import Layout
from proxyprune.diffusion.stages.loss_by_snr import evaluation_macs, measure_bins, write_losses
from proxyprune.diffusion.training.ledger import Ledger
from proxyprune.errors import TrainingError
from proxyprune.support.files import write_json


def finished_records(setup: Setup, run: RunFolder) -> list[dict[str, Any]]:
    """Read the record of every network of the pipeline: the experts, or the base where it has all the compute.

    Raises:
        TrainingError: If one is not finished.
    """
    stages = [run.base] if setup.only_base else [run.expert(index) for index in range(setup.config.intervals.count)]
    records = [read_record(stage.result, "macs", "ledger") for stage in stages]
    if missing := [str(index) for index, record in enumerate(records) if record is None]:
        command = f"proxyprune diffusion train --out {run.path} --interval {missing[0]}"
        raise TrainingError(f"Not finished yet: expert {', '.join(missing)}. Train each: {command}")
    return [record for record in records if record is not None]


def merge(setup: Setup, run: RunFolder, records: Sequence[dict[str, Any]], layout: Layout, ledger: Ledger) -> StepAdaptivePipeline:
    """Write the pipeline of a finished run, its ledger and its losses by noise level.

    Args:
        setup: The run.
        run: Its folder.
        records: As from `finished_records`.
        layout: Intervals and budgets.
        ledger: Of all stages.

    Raises:
        TrainingError: If the ledger's limit was exceeded.
    """
    if ledger.spent_macs > setup.limit_macs:
        raise TrainingError(f"The experts cost {ledger.spent_macs:,} training MACs, the full-size reference {setup.limit_macs:,}.")
    experts, folders = _networks(setup, run, records)
    blueprint = Blueprint(
        intervals=Intervals((), "none") if setup.only_base else layout.intervals,
        calling=setup.calling,
        shape=setup.data.shape,
        classes=setup.data.classes,
        macs=experts.macs,
        params=experts.params,
        base_macs=setup.base_macs,
        network=setup.source.record or record_of(setup.source.build(), setup.example_inputs),
        notes=layout.budgets.notes,
        source=_without_folders(setup.source.label),
        provenance=_provenance(setup.config),
    )
    trained_with = training_scheduler(setup.config.noise)
    pipeline = StepAdaptivePipeline(experts, blueprint, setup.default_sampler(), folders, trained_with)
    if setup.accelerator.is_main_process:
        pipeline.save_pretrained(run.pipeline)
        write_standard_files(run.base.weights, blueprint.network)
        write_json(run.ledger, ledger.to_dict())
        _compare_losses(setup, run, layout, None if setup.only_base else experts)
    setup.accelerator.wait_for_everyone()
    return pipeline


def _provenance(config: StepAdaptiveConfig) -> Provenance:
    """Return the command with every setting that differs from the command line's default; absolute paths lose their folders."""
    usual = StepAdaptiveConfig.preset("digits").to_dict()
    changed: list[str] = []
    for group, values in config.to_dict().items():
        named = {f"{group}.{name}": value for name, value in values.items()} if isinstance(values, dict) else {group: values}
        for name, value in named.items():
            default = usual[group][name.partition(".")[2]] if "." in name else usual[group]
            if value != default:
                text = _without_folders(value) if isinstance(value, str) else json.dumps(value)
                changed += ["--set", f"{name}={text}"]
    command = shlex.join(["proxyprune", "diffusion", "train", *changed, "--out", "run"])
    return Provenance(command, config.seed, config.budgets.sampler_steps)


def _without_folders(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else text


def _networks(setup: Setup, run: RunFolder, records: Sequence[dict[str, Any]]) -> tuple[Experts, list[Path | None]]:
    """Return the networks, loaded when they are first used, and where each is saved."""
    macs = tuple(record["macs"] for record in records)
    folders: list[Path | None] = [None]
    if setup.only_base:
        experts = Experts.of([setup.base_model(read_weights(run.base.weights))], macs)
    else:
        places = [run.expert(index).network for index in range(len(records))]
        params = tuple(record["params"] for record in records)
        experts = Experts(macs, params, lambda index: load_expert(places[index], setup.source.build))
        folders = list(places)
    experts.device = setup.device
    return experts, folders


def _compare_losses(setup: Setup, run: RunFolder, layout: Layout, experts: Experts | None) -> None:
    """Measure the held-out loss of base and experts by noise level, once."""
    settings = setup.config.run
    if settings.loss_bins == 0 or read_json(run.losses) is not None:
        return
    bins, base = bins_of(layout.members, settings.loss_bins), setup.base_model(read_weights(run.base.weights))
    found = measure_bins(setup, base, experts, bins, settings.loss_images)
    macs = evaluation_macs(bins, settings.loss_images, setup.base_macs, None if experts is None else experts.macs)
    write_losses(run, found, settings.loss_images, macs)
