"""`proxyprune prune`: from a model file to a smaller network on disk, or to the plan for one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options import (
    ModelOptions,
    PlanOptions,
    file_option,
    gathered,
    json_option,
    model_options,
    plan_options,
    plot_option,
    scorer_option,
)

if TYPE_CHECKING:
    from proxyprune.cli.console import Output
    from proxyprune.cli.loading import Loaded
    from proxyprune.plan import PrunePlan
    from proxyprune.ranking import Ranking

_DECIDED_BY_A_PLAN = ("target", "mode", "metric", "round_to", "keep", "floors", "ceilings", "scorer", "ranking", "norm_groups", "conv_groups")


@dataclass(frozen=True)
class Files:
    """What `prune` reads and writes besides the model.

    Attributes:
        ranking: A ranking to use instead of a scorer, or None.
        plan: A plan to apply instead of making one, or None.
        plan_only: Write the plan and cut nothing.
        out: Folder for the pruned network, or the plan's file under plan_only; None chooses a name after the model file.
        plot: Where to draw the widths, or None.
    """

    ranking: Path | None
    plan: Path | None
    plan_only: bool
    out: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        if self.plan is not None and self.plan_only:
            raise click.UsageError("--plan applies a plan and --plan-only makes one; give one of them.")

    def destination(self, model_file: Path) -> Path:
        """Where the result goes."""
        return self.out or Path(f"{model_file.stem}-plan.json" if self.plan_only else f"{model_file.stem}-pruned")


_FILES = (
    file_option("--ranking", "FILE", "Ranking from `score --json`, used instead of a scorer."),
    file_option("--plan", "FILE", "Plan to apply, instead of making one."),
    click.option("--plan-only", is_flag=True, help="Write the plan as JSON and cut nothing."),
    file_option("--out", "PATH", "Folder for the pruned network; with --plan-only, the JSON file.  [default: named after the model file]"),
    plot_option("widths before and after"),
)


@click.command(cls=Command)
@model_options
@scorer_option
@plan_options
@gathered("files", Files, _FILES)
@json_option
@traceback_option
@click.pass_context
def prune(ctx: click.Context, source: ModelOptions, scorer: str, request: PlanOptions, files: Files, as_json: bool) -> None:
    """Prune a network to a budget, verify it, and save it.

    Writes a folder that `proxyprune.load` reads: plan, weights (safetensors) and report. The budget is never exceeded.
    """
    _refuse_conflicts(ctx, source, files)
    from proxyprune.cli.console import output
    from proxyprune.cli.loading import load
    from proxyprune.plots import check_plot_path, plot_widths

    if files.plot is not None:
        check_plot_path(files.plot)
    with output(as_json) as out:
        given = _read_plan(files.plan)
        loaded = load(_as_planned(source, given), out)
