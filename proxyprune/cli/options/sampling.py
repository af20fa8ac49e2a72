"""Options of `diffusion sample` and `diffusion evaluate`: which pipeline, and how its images are drawn."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxyprune.cli.options.completion import SAMPLERS, files, sampler_names
from proxyprune.cli.options.shared import file_option, gathered

if TYPE_CHECKING:
    from torch import Tensor

    from proxyprune.diffusion.sampling.pipeline import StepAdaptivePipeline


class _Counts(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on, and not before
    """Whole numbers from 1 up, between commas."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read the text."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= 1 for part in parts):
            self.fail(f"expected whole numbers of at least 1, separated by commas, such as 8,12,20; found {value!r}", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


COUNTS = _Counts()


@dataclass(frozen=True)
class SamplingOptions:
    """A pipeline, and the settings for drawing images.

    Attributes:
        pipeline: Folder of the pipeline, or id of a repository on the Hugging Face hub.
        revision: Branch, tag or commit of the repository; None is the default branch.
        count: Number of images.
        sampler: Name of the sampler; None keeps the saved one.
        batch_size: Images at a time.
        seed: Of the images.
        one_at_a_time: Keep only one expert in memory.
        compile: Use torch.compile.
        model: Model file, for networks that came from one.
        condition: File of labels or embeddings, or None.
        classes: Classes to draw, in turn; empty to leave them to the pipeline.
    """

    pipeline: str
    revision: str | None
    count: int
    sampler: str | None
    batch_size: int
    seed: int
    one_at_a_time: bool
    compile: bool
    model: str | None
    condition: Path | None
    classes: tuple[int, ...]

    @property
    def conditions(self) -> Tensor | None:
        """One label or embedding for each image; None to leave it to the pipeline.

        Raises:
            click.UsageError: If both classes and a file are given.
        """
        import torch

        from proxyprune.diffusion.data.conditions import read_condition, repeated

        if self.classes and self.condition is not None:
            raise click.UsageError("--class and --condition both set the content of the images; give one of them.")
        if self.classes:
            return repeated(torch.tensor(self.classes), self.count)
        return None if self.condition is None else repeated(read_condition(self.condition), self.count)

    def open(self, other: str | None = None) -> StepAdaptivePipeline:
        """Load the pipeline, or another one in the same way, from its default branch."""
        from proxyprune.diffusion.sampling.pipeline import StepAdaptivePipeline
        from proxyprune.modelfile import load_model_file

        factory = None if self.model is None else load_model_file(self.model).build_model
        found = StepAdaptivePipeline.from_pretrained(
            other or self.pipeline, factory=factory, resident=not self.one_at_a_time, revision=self.revision if other is None else None
        )
        if self.sampler is not None:
            found.use(self.sampler)
        return found.compile() if self.compile else found


def sample_command(pipeline: Path, model: str, data: str) -> str:
    """Return the command that samples a finished pipeline, with the files that the folder does not hold.

    Args:
        pipeline: Its folder.
        model: Model file of the run.
        data: Data of the run, which hold the embeddings of networks that take some.
    """
    from proxyprune.diffusion.sampling.pipeline_record import read_blueprint

    blueprint = read_blueprint(pipeline)
    arguments = ["--pipeline", str(pipeline), "--grid", "samples.png"]
    arguments += ["--model", model] if blueprint.network is None else []
    arguments += ["--condition", data] if blueprint.takes_embeddings else []
    return f"proxyprune diffusion sample {shlex.join(arguments)}"


_SAMPLING = (
    click.option(
        "--pipeline",
        "-p",
        required=True,
        metavar="FOLDER|ORG/NAME",
        shell_complete=files,
        help="Folder of a pipeline from `train`, or the id of its repository on the Hugging Face hub.",
    ),
    click.option("--revision", metavar="NAME", help="Branch, tag or commit of the repository (default: main)."),
    click.option(
        "--sampler",
        metavar="NAME",
        shell_complete=sampler_names,
        help=f"{', '.join(SAMPLERS)}, or a class of diffusers (default: the saved one).",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Number of images at a time; the images do not depend on it.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed; the same seed gives the same images."),
    click.option("--one-at-a-time", is_flag=True, help="Keep only one expert in memory."),
    click.option("--compile", is_flag=True, help="Compile the experts with torch.compile."),
    click.option("--model", "-m", metavar="FILE.py[:FACTORY]", shell_complete=files, help="Model file, if the networks are from one."),
    file_option("--condition", "FILE.npz", "Array embeddings or labels for the images, repeated as needed."),
    click.option(
        "--class",
        "classes",
        multiple=True,
        type=click.IntRange(min=0),
        metavar="N",
        help="Generate images of this class, counted from 0; if repeated, of the classes in turn.",
    ),
)


def sampling_options(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of `SamplingOptions`, as its argument `sampling`, with a default for the number of images."""
    option = click.option("--count", "-n", type=click.IntRange(min=1), default=count, show_default=True, help="Number of images.")
    return gathered("sampling", SamplingOptions, (*_SAMPLING[:2], option, *_SAMPLING[2:]))
