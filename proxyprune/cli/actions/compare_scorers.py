"""Compare scorers on a user's own network."""

from __future__ import annotations

import click

from proxyprune.cli.loading import build, scorer_named
from proxyprune.cli.options.compare_options import CompareOptions, listed_names
from proxyprune.cli.options.llm import SCORERS, LLMOptions
from proxyprune.cli.options.shared import ModelOptions, RecoveryOptions
from proxyprune.cli.output.console import output
from proxyprune.cli.output.measured_tables import comparison_tables
from proxyprune.comparing import compare
from proxyprune.planning.request import CutKeywords
from proxyprune.plots.figure import check_plot_path
from proxyprune.plots.scorer_comparison import plot_comparison

DEFAULT_RECOVERY_STEPS = 50


def compare_scorers(
    source: ModelOptions, what: CompareOptions, cuts: CutKeywords, recovery: RecoveryOptions, llm: LLMOptions, *, as_json: bool
) -> None:
    """Cut and measure with every scorer, and print the tables."""
    if what.plot is not None:
        check_plot_path(what.plot)
    with output(as_json) as out:
        arms = {name: scorer_named(name, llm if name in SCORERS else LLMOptions()).scorer for name in listed_names(what.scorers)}
        built = build(source, out)
        with out.stage(f"Comparing {len(arms)} scorers"):
            comparison = compare(
                built.model,
                built.inputs,
                arms,
                also=built.also,
                targets=[_target(text) for text in listed_names(what.targets)],
                modes=listed_names(what.modes),
                recovery=recovery.recovery(DEFAULT_RECOVERY_STEPS),
                calibration=what.calibration,
                peers=what.peer,
                seeds=range(source.seed, source.seed + what.seeds),
                **source.trace_keywords,
                journal=what.journal,
                resume=what.resume,
                progress=lambda text: click.echo(text, err=True),
                **cuts,
                **built.measured_with(),
            )
        out.show(*comparison_tables(comparison), *(f"• {note}" for note in comparison.notes))
        if what.plot is not None:
            plot_comparison(comparison, what.plot)
            out.show(f"Plot: {what.plot}")
        out.emit({**comparison.to_dict(), "graph": None if comparison.graph is None else comparison.graph.to_dict()})


def _target(text: str) -> float | str:
    """Return a plain fraction as the number that a Python caller would write."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if number < 1 else text
