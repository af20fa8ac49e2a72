"""`proxyprune score`: which blocks matter."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.llm import LLMOptions, llm_options
from proxyprune.cli.options.shared import ModelOptions, json_option, model_options, plot_option, scorer_option
from proxyprune.cli.options.timing import timing_options
from proxyprune.measuring.timing import Timing


@click.command(cls=Command)
@model_options
@scorer_option
@llm_options
@click.option("--time", "timed", is_flag=True, help="Show each block's share of the time of a run on this machine.")
@timing_options
@plot_option("blocks by share of the MACs and by importance")
@json_option
@traceback_option
def score(source: ModelOptions, scorer: str, llm: LLMOptions, timed: bool, timing: Timing, plot: Path | None, as_json: bool) -> None:
    """Rank the blocks of a network by importance.

    `--json` prints a ranking that `proxyprune prune --ranking` reads.
    """
    from proxyprune.cli.actions.score_blocks import score_blocks

    score_blocks(source, scorer, llm, plot, timing=timing, timed=timed, as_json=as_json)
