"""`proxyprune score`: which blocks matter."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.llm import LLMOptions, llm_options
from proxyprune.cli.options.shared import ModelOptions, json_option, model_options, plot_option, scorer_option


@click.command(cls=Command)
@model_options
@scorer_option
@llm_options
@plot_option("blocks by share of the MACs and by importance")
@json_option
@traceback_option
def score(source: ModelOptions, scorer: str, llm: LLMOptions, plot: Path | None, as_json: bool) -> None:
    """Rank a network's blocks by importance.

    `--json` prints a ranking that `proxyprune prune --ranking` reads.
    """
    from proxyprune.cli.loading import build, scorer_named
    from proxyprune.cli.output.console import output
    from proxyprune.cli.output.payloads import ranking_payload
    from proxyprune.cli.output.tables import ranking_table, remarks, warning
    from proxyprune.plots.figure import check_plot_path
    from proxyprune.plots.network import plot_ranking

    if plot is not None:
        check_plot_path(plot)
    with output(as_json) as out:
        judge = scorer_named(scorer, llm)
        built = build(source, out)
        if judge.dry_run:
            built.show_dry_run(judge, out)
            return
        graph = built.trace(out)
        ranking = built.rank(graph, judge, out)
        out.show(
            ranking_table(graph, ranking), *remarks(graph, ranking.notes, ranking.confidence), judge.listener.table(), warning(ranking)
        )
        out.emit(ranking_payload(graph, ranking, judge.listener.payload()))
        if plot is not None:
            plot_ranking(graph, ranking, plot)
            out.show(f"Plot: {plot}")
