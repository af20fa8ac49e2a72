"""`proxyprune diffusion`: train, plan, sample and evaluate step-adaptive pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.completion import PRESETS, files, preset_names, scorer_names, setting_names
from proxyprune.cli.options.sampling import COUNTS, SamplingOptions, sample_command, sampling_options
from proxyprune.cli.options.shared import file_option, gathered, json_option, plot_option
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.errors import InputError, StorageError

if TYPE_CHECKING:
    from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
    from proxyprune.diffusion.setup import Setup
    from proxyprune.diffusion.stages.layout import Layout
    from proxyprune.diffusion.trainer import StepAdaptiveTrainer

SCHEMA = 1
STAGES = ("all", "base", "layout", "experts", "merge")


@dataclass(frozen=True)
class Choice:
    """The configuration; later entries override earlier ones.

    Attributes:
        preset: Name of a preset, or None.
        config: Configuration file, or None.
        changes: Settings by dotted name, from the options.
    """

    preset: str | None
    config: Path | None
    changes: dict[str, Any]

    def load(self, folder: Path | None = None) -> StepAdaptiveConfig:
        """Return the configuration; of the run in `folder` when nothing else is named."""
        from proxyprune.diffusion.config.run_config import StepAdaptiveConfig

        if self.preset is not None and self.config is not None:
            raise click.UsageError("--preset and --config both name a configuration; give one of them.")
        if self.config is not None:
            base = StepAdaptiveConfig.from_json(self.config)
        elif self.preset is None and folder is not None and RunFolder(folder).config.is_file():
            base = StepAdaptiveConfig.from_json(RunFolder(folder).config)
        else:
            base = StepAdaptiveConfig.preset(self.preset or "digits")
        return base.with_values(self.changes)


def _choice(preset: str | None, config: Path | None, settings: tuple[str, ...], **named: Any) -> Choice:
    changes = {_SHORT[name]: value for name, value in named.items() if value is not None}
    for entry in settings:
        name, equals, value = entry.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes NAME=VALUE, such as budgets.target=0.5; found {entry!r}.")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value  # text needs no quotes
    return Choice(preset, config, changes)


_SHORT = {
    "model": "model",
    "source": "data.source",
    "data_path": "data.path",
    "scorer": "pruning.scorer",
    "accept_unreliable": "pruning.accept_unreliable",
    "target": "budgets.target",
    "metric": "budgets.metric",
    "intervals": "intervals.count",
    "steps": "compute.reference_steps",
    "seed": "seed",
}
"""Option -> setting."""
_CHOICE = (
    click.option(
        "--preset",
        metavar="NAME",
        shell_complete=preset_names,
        help=f"{PRESETS[0]} (default), {', '.join(PRESETS[1:-1])} or {PRESETS[-1]}.",
    ),
    file_option("--config", "FILE", "Configuration as JSON, such as config.json of a run."),
    click.option("--model", "-m", metavar="NAME", shell_complete=files, help="Preset, diffusers config, or model file path.py[:factory]."),
    click.option("--source", metavar="DATA", help="digits, fashion-mnist, a folder of images, FILE.npz, or hub:NAME."),
    click.option("--data", "data_path", metavar="PATH", help="Folder or file of a named data set."),
    click.option("--scorer", "-s", metavar="NAME", shell_complete=scorer_names, help="Scorer for the cuts of the experts."),
    click.option(
        "--accept-unreliable",
        is_flag=True,
        default=None,
        help="Cut even if a ranking is marked unreliable.",
    ),
    click.option("--target", "-t", type=float, help="Mean cost of a sampling step, as a fraction of the base's."),
    click.option("--metric", type=click.Choice(["macs", "time"]), help="Unit of the target: MACs (default), or time on this machine."),
    click.option("--intervals", type=click.IntRange(min=1), help="Number of intervals."),
    click.option("--steps", type=click.IntRange(min=1), help="Limit of the training compute, in steps of the full-size model."),
    click.option("--seed", type=int, help="Seed of all random choices."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        shell_complete=setting_names,
        help="Any other setting, by its dotted name; repeatable.",
    ),
)
choice_options = gathered("choice", _choice, _CHOICE, names=("preset", "config", "settings", *_SHORT))


@click.group()
def diffusion() -> None:
    """Train, sample and evaluate step-adaptive diffusion: one denoiser for each interval of noise levels.

    Start with: proxyprune diffusion plan --preset digits
    """


@diffusion.command(cls=Command)
@choice_options
@file_option("--run", "FOLDER", "Run from which measured intervals and budgets are read.")
@plot_option("SNR, intervals and budgets")
@json_option
@traceback_option
def plan(choice: Choice, run: Path | None, plot: Path | None, as_json: bool) -> None:
    """Show intervals, SNR ranges, budgets and the expected saving, before training."""
    from proxyprune.cli.output.console import output
    from proxyprune.cli.output.diffusion_tables import layout_table, plan_payload
    from proxyprune.plots.figure import check_plot_path

    if plot is not None:
        check_plot_path(plot)
    if run is not None:
        _check_run(run, choice)
    with output(as_json) as out:
        config = choice.load(run)
        with out.stage("Reading data and network"):
            setup, layout = _laid_out(config, run)
            macs = setup.base_macs
        out.show(*layout_table(layout, macs, setup.schedule.snr_db), *layout.budgets.notes)
        out.emit(plan_payload(config, layout, macs, setup.graph.params, setup.schedule.snr_db))
        if plot is not None:
            from proxyprune.plots.noise_intervals import plot_layout

            plot_layout(setup.schedule, layout.members, layout.budgets, plot, clip_db=config.noise.clip_db)
            out.show(f"Plot: {plot}")


def _check_run(run: Path, choice: Choice) -> None:
    """Refuse a folder that is no run, instead of answering for the default preset.

    Raises:
        StorageError: If it has no configuration and none is named.
    """
    if not run.is_dir() or (choice.preset is None and choice.config is None and not RunFolder(run).config.is_file()):
        raise StorageError(f"'{run}' is not a run: it has no config.json. Check the name, or choose a configuration (--preset, --config).")


def _laid_out(config: StepAdaptiveConfig, run: Path | None) -> tuple[Setup, Layout]:
    from proxyprune.diffusion.setup import Setup
    from proxyprune.diffusion.stages.layout import decide, read_layout
    from proxyprune.diffusion.stages.run_check import check_settings

    setup = Setup.of(config)
    found = None if run is None else read_layout(RunFolder(run), setup)
    if run is not None and found is not None:
        check_settings(RunFolder(run), config)
        return setup, found
    if {"measured", "complexity"} & {config.intervals.method, config.budgets.method}:
        raise InputError(
            "Measured intervals and budgets (complexity included) need a trained base, so there is nothing to show yet. Run "
            f"`proxyprune diffusion train --stage layout --out {run or 'FOLDER'}` with these settings, and give that folder as --run."
        )
    return setup, decide(setup, None)


@diffusion.command(cls=Command, stopped="The same command resumes the run.")
@choice_options
@click.option(
    "--out",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the run; an unfinished run is resumed.",
)
@click.option(
    "--stage",
    type=click.Choice(["all", "base", "layout", "experts", "merge"]),
    default="all",
    show_default=True,
    help="Part of the run to do.",
)
@click.option("--interval", type=click.IntRange(min=0), help="Train only the expert of this interval, as one job of several.")
@file_option("--base-from", "FOLDER", "Use the base of another run.")
@json_option
@traceback_option
def train(choice: Choice, folder: Path, stage: str, interval: int | None, base_from: Path | None, as_json: bool) -> None:
    """Train base and experts into a folder, or resume a stopped run.

    Under `accelerate launch`, every process does its part. With --interval N, each job trains one expert in the shared folder, and
    --stage merge merges the experts.
    """
    from proxyprune.cli.output.console import output
    from proxyprune.cli.output.diffusion_tables import layout_table, ledger_table
    from proxyprune.diffusion.trainer import StepAdaptiveTrainer

    if interval is not None and stage not in ("all", "experts"):
        raise click.UsageError("--interval trains an expert, so it can be combined only with --stage experts.")
    if interval is not None or stage in ("layout", "experts", "merge"):
        _check_run(folder, choice)
    with output(as_json) as out:
        was_finished = RunFolder(folder).ledger.is_file() and RunFolder(folder).pipeline.is_dir()
        trainer = StepAdaptiveTrainer(choice.load(folder), folder, base=base_from)
        main = trainer.accelerator.is_main_process
        _stages(trainer, stage, interval)
        layout = None if stage == "base" else trainer.layout()
        trainer.accelerator.end_training()
        if not main:
            return
        ledger = trainer.ledger()
        if was_finished:
            out.show(f"{folder} was finished before; nothing was trained.")
        if layout is not None:
            out.show(*layout_table(layout, trainer.setup.base_macs, trainer.setup.schedule.snr_db))
        out.show(ledger_table(ledger))
        finished = RunFolder(folder).pipeline
        if finished.is_dir():
            config = trainer.config
            out.show(f"Sample with: {sample_command(finished, config.model, config.data.source)}")
        budgets = None if layout is None else layout.budgets.to_dict()
        out.emit({"schema": SCHEMA, "folder": str(folder), "ledger": ledger.to_dict(), "budgets": budgets})


def _stages(trainer: StepAdaptiveTrainer, stage: str, interval: int | None) -> None:
    if interval is not None:
        trainer.train_expert(interval)
        return
    steps: dict[str, Callable[[], Any]] = {
        "all": trainer.train,
        "base": trainer.train_base,
        "layout": trainer.layout,
        "experts": lambda: [trainer.train_expert(index) for index in range(len(trainer.layout().members))],
        "merge": trainer.assemble,
    }
    steps[stage]()


@diffusion.command(cls=Command)
@sampling_options(count=64)
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True, help="Sampling steps.")
@file_option("--grid", "PATH", "Picture file for a grid of all images.")
@file_option("--out", "FILE.npz", "File for the images as bytes.")
@json_option
@traceback_option
def sample(sampling: SamplingOptions, steps: int, grid: Path | None, out: Path | None, as_json: bool) -> None:
    """Generate images, and write a grid, an npz file, or both."""
    import time

    from proxyprune.cli.output.console import output
    from proxyprune.diffusion.data import write_images as images

    if grid is None and out is None:
        raise click.UsageError("Choose where to write the images: --grid PICTURE, --out FILE.npz, or both.")
    with output(as_json) as shown:
        images.check_places(grid, out)
        pipeline = sampling.open()
        started = time.perf_counter()
        settings: dict[str, Any] = {"steps": steps, "batch_size": sampling.batch_size, "seed": sampling.seed}
        found = pipeline.generate(sampling.count, condition=sampling.conditions, **settings)
        seconds = time.perf_counter() - started
        if grid is not None:
            images.save_picture(images.grid(found, scale=max(1, 64 // found.shape[-1])), grid)
        if out is not None:
            images.save_arrays(found, out)
        macs, relative = pipeline.sampling_macs(steps), pipeline.relative_macs(steps)
        shown.show(f"{len(found)} images in {seconds:.1f} s; {macs:,} MACs an image, {relative:.1%} of the unpruned network's.")
        shown.emit(
            {
                "schema": SCHEMA,
                "images": len(found),
                "seconds": seconds,
                "sampling_macs": macs,
                "relative_macs": relative,
                "sampler": type(pipeline.scheduler).__name__,
                "steps": steps,
                "seed": sampling.seed,
                "grid": None if grid is None else str(grid),
                "out": None if out is None else str(out),
            }
        )


@diffusion.command(cls=Command)
@sampling_options(count=2000)
@click.option(
    "--steps", type=COUNTS, default="50", show_default=True, help="Sampling steps; several numbers, such as 8,12,20, are compared."
)
@click.option(
    "--beside", multiple=True, metavar="FOLDER|ORG/NAME", shell_complete=files, help="Another pipeline to compare with; repeatable."
)
@file_option("--run", "FOLDER", "Run of the pipeline (default: the folder above it), for the data to compare with.")
@click.option(
    "--features",
    metavar="NAME",
    help="fashion-mnist, digits, inception, inception:WEIGHTS.pth, or trained (a small network, trained on the images). Default: "
    "those of the data, or trained.",
)
@plot_option("distance against compute, a curve for each pipeline")
@json_option
@traceback_option
def evaluate(
    sampling: SamplingOptions,
    steps: tuple[int, ...],
    beside: tuple[str, ...],
    run: Path | None,
    features: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure Fréchet distance, KID, precision, recall, and the held-out loss of every expert.

    With several numbers of steps or several pipelines (--beside), a table compares distance, compute and time.
    """
    from proxyprune.cli.actions.evaluate_pipelines import Evaluated, evaluate_pipelines

    places = (sampling.pipeline, *beside)
    evaluate_pipelines(Evaluated(places, steps, run, features, plot), sampling, as_json=as_json)
