"""Evaluate pipelines with one or several numbers of steps, and show them side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proxyprune.cli.options.sampling import SamplingOptions
from proxyprune.cli.output.console import Output, output
from proxyprune.cli.output.diffusion_tables import evaluation_table, frontier_table
from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.data.image_data import ImageData, load_data
from proxyprune.diffusion.evaluation.evaluate import Evaluation, evaluate
from proxyprune.diffusion.evaluation.features import SIZES, Features, load_features
from proxyprune.diffusion.evaluation.trained_features import train_features
from proxyprune.diffusion.networks import image_size
from proxyprune.diffusion.process.noise_schedule import NoiseSchedule
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.errors import StorageError
from proxyprune.plots.figure import check_plot_path
from proxyprune.plots.sampling_frontier import plot_frontier

SCHEMA = 1


@dataclass(frozen=True)
class Evaluated:
    """Pipelines to evaluate, and the means.

    Attributes:
        pipelines: Folders of the pipelines, or ids of repositories on the hub.
        steps: Numbers of sampling steps.
        run: Folder of the run that the first pipeline came from; None takes the folder above it.
        features: Name of the features; None takes those of the data, or trains some.
        plot: File for a picture, or None.
    """

    pipelines: tuple[str, ...]
    steps: tuple[int, ...]
    run: Path | None
    features: str | None
    plot: Path | None

    def config(self) -> StepAdaptiveConfig:
        """Read the configuration of the run, which says what images are compared with.

        Raises:
            StorageError: If it is not there.
        """
        path = RunFolder(self.run or Path(self.pipelines[0]).parent).config
        if not path.is_file():
            raise StorageError(
                f"The configuration of the pipeline's run, which names the images to compare with, was expected at '{path}'; "
                "it is not there. Give the folder of the run with --run."
            )
        return StepAdaptiveConfig.from_json(path)

    def compared_by(self, data: ImageData, source: str) -> Features:
        """Load the features, or train them on the images."""
        if self.features == "trained" or (self.features is None and source not in SIZES):
            return train_features(data)
        return load_features(self.features or source)


def evaluate_pipelines(what: Evaluated, sampling: SamplingOptions, *, as_json: bool) -> None:
    """Sample, judge, and print one table; of a single evaluation all figures, of several the frontier."""
    if what.plot is not None:
        check_plot_path(what.plot)
    with output(as_json) as out:
        first = sampling.open()  # a wrong folder is named before anything is read or trained
        config = what.config()
        data = load_data(config.data, image_size(config))
        features, schedule = what.compared_by(data, config.data.source), NoiseSchedule.of(config.noise)
        found: list[tuple[str, Evaluation]] = []
        for number, place in enumerate(what.pipelines):
            pipeline = first if number == 0 else sampling.open(place)
            for steps in what.steps:
                judged = evaluate(
                    pipeline,
                    data,
                    features,
                    images=sampling.count,
                    steps=steps,
                    batch_size=sampling.batch_size,
                    seed=sampling.seed,
                    schedule=schedule,
                    condition=sampling.conditions,
                )
                found.append((place, judged))
        _show(out, found)
        if what.plot is not None:
            plot_frontier(found, what.plot)
            out.show(f"Plot: {what.plot}")
        if len(found) == 1:
            out.emit(found[0][1].to_dict())
        else:
            out.emit({"schema": SCHEMA, "evaluations": [{"pipeline": place, **judged.to_dict()} for place, judged in found]})


def _show(out: Output, found: list[tuple[str, Evaluation]]) -> None:
    if len(found) == 1:
        out.show(evaluation_table(found[0][1]))
    else:
        out.show(frontier_table(found))
    out.show(*(f"• {note}" for note in dict.fromkeys(note for _, judged in found for note in judged.notes)))
