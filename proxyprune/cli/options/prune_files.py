"""Options of `proxyprune prune` alone: what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from proxyprune.cli.options.shared import file_option, gathered, plot_option


@dataclass(frozen=True)
class PruneFiles:
    """Files that `prune` reads and writes besides the model.

    Attributes:
        ranking: A ranking to use instead of a scorer, or None.
        plan: A plan to apply instead of making one, or None.
        advice: Limits to measure, or None.
        plan_only: Write the plan and cut nothing.
        out: Folder for the pruned network, or the plan's file under plan_only; None chooses a name after the model file.
        plot: Where to draw the widths, or None.
        timed: Measure how long a run takes before and after.
        save_pretrained: Folder that `from_pretrained` of the network's class reads, or None.
        onnx: ONNX file to export to, or None.
        lora: LoRA adapters of the unpruned network, to carry over.
        lora_prefix: Beginning of the adapters' keys that belong to the pruned network; None finds it.
        ids: Show ids of channel groups instead of block and role.
    """

    ranking: Path | None
    plan: Path | None
    advice: Path | None
    plan_only: bool
    out: Path | None
    plot: Path | None
    timed: bool
    save_pretrained: Path | None
    onnx: Path | None
    lora: tuple[Path, ...]
    lora_prefix: str | None
    ids: bool

    def destination(self, model_file: Path) -> Path:
        """Return the folder of the result."""
        return self.out or Path(f"{model_file.stem}-plan.json" if self.plan_only else f"{model_file.stem}-pruned")


_OPTIONS = (
    file_option("--ranking", "FILE", "Ranking from `score --json`, used instead of a scorer."),
    file_option("--plan", "FILE", "Plan to apply instead of making one."),
    file_option("--advice", "FILE", "Limits with reasons, as JSON. Each is measured on calibration data, and dropped if it does not help."),
    click.option("--plan-only", is_flag=True, help="Only write the plan as JSON; cut nothing."),
    file_option(
        "--out",
        "PATH",
        "Folder for the pruned network (default: FILE-pruned), replaced if it exists; with --plan-only, the JSON file (FILE-plan.json).",
    ),
    plot_option("widths before and after"),
    click.option("--time", "timed", is_flag=True, help="Measure the time of a run on the example inputs before and after."),
    file_option(
        "--save-pretrained",
        "FOLDER",
        "Also write a plain transformers or diffusers folder, and test it without proxyprune; use --uniform.",
    ),
    file_option("--onnx", "FILE", "Also export to ONNX with a dynamic batch, and compare onnxruntime with torch at two batch sizes."),
    click.option(
        "--lora",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="ADAPTER",
        help="LoRA adapter of the unpruned network (file or PEFT folder). The adapter for the pruned network is written beside the "
        "result; repeatable.",
    ),
    click.option(
        "--lora-prefix",
        metavar="PREFIX",
        help="Prefix of the --lora keys that belong to this network, such as unet.; other keys are copied.",
    ),
    click.option("--ids", is_flag=True, help="Show channel groups by the ids of plans and options, not by block and role."),
)

prune_files = gathered("files", PruneFiles, _OPTIONS)
"""Give a command the options of `PruneFiles`, as its argument `files`."""
