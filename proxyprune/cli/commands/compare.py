"""`proxyprune compare`: which scorer earns its price on a user's own network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.completion import scorer_list
from proxyprune.cli.options.llm import SCORERS, LLMOptions, llm_options
from proxyprune.cli.options.shared import (
    ModelOptions,
    RecoveryOptions,
    file_option,
    gathered,
    json_option,
    measured_model_options,
    plot_option,
    recovery_options,
)

DEFAULT_RECOVERY_STEPS = 50


@dataclass(frozen=True)
class CompareOptions:
    """What to compare.

    Attributes:
        scorers: Names, separated by commas.
        targets: Budgets, separated by commas.
        modes: Modes, separated by commas.
        seeds: How many seeds, from --seed on.
        calibration: Batches that a scorer sees, or None for all.
        journal: File of the measurements, or None to keep none.
        resume: Go on with it.
        plot: Where to draw, or None.
    """

    scorers: str
    targets: str
    modes: str
    seeds: int
    calibration: int | None
    journal: Path | None
    resume: bool
    plot: Path | None


_COMPARE = (
    click.option(
        "--scorers",
        "-s",
        default="magnitude,taylor,random",
        show_default=True,
        metavar="A,B,...",
        shell_complete=scorer_list,
        help="Registered names.",
    ),
    click.option("--targets", "-t", default="0.8,0.6,0.4", show_default=True, metavar="T,...", help="Fractions of the MACs, or amounts."),
    click.option("--modes", default="width", show_default=True, metavar="MODE,...", help="width, depth, both."),
    click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions, with seeds from --seed on."),
    click.option("--calibration", type=click.IntRange(min=1), metavar="N", help="Let scorers see N batches, drawn for each seed (all)."),
    file_option("--journal", "FILE", "Where every measurement is kept as it comes."),
    click.option("--resume", is_flag=True, help="Go on with the measurements in the journal."),
    plot_option("agreement with the oracle, and loss by target"),
)


@click.command(cls=Command, stopped="With --journal, what was measured is kept, and --resume goes on from there.")
@measured_model_options
@gathered("what", CompareOptions, _COMPARE)
@recovery_options
@llm_options
@json_option
@traceback_option
def compare(source: ModelOptions, what: CompareOptions, recovery: RecoveryOptions, llm: LLMOptions, as_json: bool) -> None:
    """Compare scorers on a network: the same cuts, the same data, the same recovery.

    For each scorer: Kendall's tau to the ablation oracle, held-out loss right after the cut and after a short recovery, seconds and money.
    The model file defines calibration_batches() and loss(model, batch), and may define validation_batches() to measure with.
    """
    if llm.dry_run:
        raise click.UsageError("--dry-run belongs to `proxyprune score`, which shows what a language model would be sent.")
    if not any(name in SCORERS for name in _listed(what.scorers)):
        llm.refuse_any("a comparison without a language model")
    if what.resume and what.journal is None:
        raise click.UsageError("--resume goes on with a journal; name it with --journal.")
    from proxyprune.cli.loading import build, scorer_named
    from proxyprune.cli.output.console import output
    from proxyprune.cli.output.measured_tables import comparison_tables
    from proxyprune.comparing import compare as compare_scorers
    from proxyprune.plots.comparison import plot_comparison
    from proxyprune.plots.figure import check_plot_path

    if what.plot is not None:
        check_plot_path(what.plot)
    with output(as_json) as out:
        arms = {name: scorer_named(name, llm if name in SCORERS else LLMOptions()).scorer for name in _listed(what.scorers)}
        built = build(source, out)
        with out.stage(f"Comparing {len(arms)} scorers"):
            comparison = compare_scorers(
                built.model,
                built.inputs,
                arms,
                targets=[_target(text) for text in _listed(what.targets)],
                modes=_listed(what.modes),
                recovery=recovery.recovery(DEFAULT_RECOVERY_STEPS),
                calibration=what.calibration,
                seeds=range(source.seed, source.seed + what.seeds),
                norm_groups=source.norm_groups,
                conv_groups=source.conv_groups,
                journal=what.journal,
                resume=what.resume,
                progress=lambda text: click.echo(text, err=True),
                **built.measured_with(),
            )
        out.show(*comparison_tables(comparison), *(f"• {note}" for note in comparison.notes))
        if what.plot is not None:
            plot_comparison(comparison, what.plot)
            out.show(f"Plot: {what.plot}")
        out.emit({**comparison.to_dict(), "graph": None if comparison.graph is None else comparison.graph.to_dict()})


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _target(text: str) -> float | str:
    """A plain fraction as the number that a Python caller would write."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if number < 1 else text
