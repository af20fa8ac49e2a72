"""Rank the blocks of a network."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.loading import build, scorer_named
from proxyprune.cli.options.llm import LLMOptions
from proxyprune.cli.options.shared import ModelOptions
from proxyprune.cli.output.console import output
from proxyprune.cli.output.payloads import ranking_payload
from proxyprune.cli.output.tables import ranking_table, remarks, warning
from proxyprune.measuring.timing import Timing
from proxyprune.plots.figure import check_plot_path
from proxyprune.plots.network import plot_ranking
from proxyprune.scoring.contract import shows_time


def score_blocks(
    source: ModelOptions, scorer: str, llm: LLMOptions, plot: Path | None, *, timing: Timing, timed: bool, as_json: bool
) -> None:
    """Score the blocks and print the ranking, or print what a language model would be sent.

    Args:
        source: Model file and what is read from it.
        scorer: Name of the scorer.
        llm: How a language model is asked.
        plot: File of a figure, or None.
        timing: How times are measured.
        timed: Show each block's share of the time.
        as_json: Print JSON.
    """
    if plot is not None:
        check_plot_path(plot)
    with output(as_json) as out:
        judge = scorer_named(scorer, llm)
        if llm.ask_advice and not llm.dry_run:
            raise click.UsageError("--ask-advice requests limits of a plan, and `proxyprune score` makes no plan; use it with prune.")
        built = build(source, out)
        if judge.dry_run:
            built.show_dry_run(judge, out, timing)
            return
        graph = built.trace(out)
        if timed or shows_time(judge.scorer):
            graph = built.timed(graph, timing)
        ranking = built.rank(graph, judge, out)
        out.show(
            ranking_table(graph, ranking), *remarks(graph, ranking.notes, ranking.confidence), judge.listener.table(), warning(ranking)
        )
        out.emit(ranking_payload(graph, ranking, judge.listener.payload()))
        if plot is not None:
            plot_ranking(graph, ranking, plot)
            out.show(f"Plot: {plot}")
