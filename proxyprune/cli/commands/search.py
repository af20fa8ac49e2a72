"""`proxyprune search`: measure proposals until the budget of measurements is spent, and save the best network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.completion import proposer_names, scorer_names
from proxyprune.cli.options.llm import SCORERS, LLMOptions, llm_options
from proxyprune.cli.options.shared import (
    ModelOptions,
    PlanOptions,
    RecoveryOptions,
    file_option,
    gathered,
    json_option,
    measured_model_options,
    plan_options,
    plot_option,
    recovery_options,
)

if TYPE_CHECKING:
    from proxyprune.cli.loading import Built
    from proxyprune.cli.output.console import Output
    from proxyprune.searching import Proposer, Round, SearchResult


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        proposer: A proposer, or a scorer with memory.
        start: Scorer of the first round, or None for the default.
        rounds: Measurements to spend.
        patience: Measurements without improvement after which to stop, or None.
        memory: File of the rounds; None chooses a name after the model file.
        resume: Go on with it.
        out: Folder for the best network; None chooses a name after the model file.
        plot: Where to draw the losses, or None.
    """

    proposer: str
    start: str | None
    rounds: int
    patience: int | None
    memory: Path | None
    resume: bool
    out: Path | None
    plot: Path | None


_SEARCH = (
    click.option(
        "--proposer",
        "-p",
        default="evolution",
        show_default=True,
        metavar="NAME",
        shell_complete=proposer_names,
        help="evolution, coordinate, random, or a scorer, which is told what was measured.",
    ),
    click.option(
        "--start",
        metavar="SCORER",
        shell_complete=scorer_names,
        help="Scorer of the first round (default: the proposer if it is a scorer, else taylor).",
    ),
    click.option("--rounds", type=click.IntRange(min=1), default=16, show_default=True, help="Measurements to spend, the first included."),
    click.option("--patience", type=click.IntRange(min=1), metavar="N", help="Stop after N measurements without improvement."),
    file_option("--memory", "FILE", "Where every round is remembered (default: FILE-search.jsonl)."),
    click.option("--resume", is_flag=True, help="Go on with the rounds in the memory, as if nothing had happened."),
    file_option("--out", "PATH", "Folder for the best network (default: FILE-searched)."),
    plot_option("the loss by measurement, and the best so far"),
)


@click.command(cls=Command, stopped="The rounds so far are kept; the same command with --resume goes on from there.")
@measured_model_options
@plan_options
@gathered("how", SearchOptions, _SEARCH)
@recovery_options
@llm_options
@json_option
@traceback_option
def search(
    source: ModelOptions, request: PlanOptions, how: SearchOptions, recovery: RecoveryOptions, llm: LLMOptions, as_json: bool
) -> None:
    """Search for the best network of a budget by measuring proposals.

    Each round proposes a ranking, plans, cuts and measures the loss on held-out batches. The model file defines calibration_batches() and
    loss(model, batch), and may define validation_batches() to measure with. A killed search goes on with --resume.
    """
    if llm.dry_run:
        raise click.UsageError("--dry-run belongs to `proxyprune score`, which shows what a language model would be sent.")
    from proxyprune.cli.loading import build
    from proxyprune.cli.output.console import output
    from proxyprune.plots.figure import check_plot_path
    from proxyprune.saving.destination import check_folder

    if how.plot is not None:
        check_plot_path(how.plot)
    check_folder(_folder(source, how))
    with output(as_json) as out:
        proposer = _proposer(how.proposer, llm)
        built = build(source, out)
        result = _search(built, proposer, request, how, recovery, out)
        _finish(built, result, how, out)


def _proposer(name: str, llm: LLMOptions) -> Proposer:
    """Looked up before anything slow happens; a language model with its options, which hold for every round."""
    from proxyprune.cli.loading import scorer_named
    from proxyprune.searching import proposer_named
    from proxyprune.searching.proposers.scorer_proposer import ScorerProposer

    if name in SCORERS:
        return ScorerProposer(scorer_named(name, llm).scorer)
    llm.refuse_any(f"proposer '{name}'")
    return proposer_named(name)


def _search(
    built: Built, proposer: Proposer, request: PlanOptions, how: SearchOptions, recovery: RecoveryOptions, out: Output
) -> SearchResult:
    from proxyprune.searching import search as search_network

    with out.stage(f"Searching with {proposer.name}, {how.rounds} measurements"):
        return search_network(
            built.model,
            built.inputs,
            proposer=proposer,
            rounds=how.rounds,
            patience=how.patience,
            start=how.start,
            recovery=recovery.recovery(default_steps=0),
            memory=_memory(built, how),
            resume=how.resume,
            norm_groups=built.source.norm_groups,
            conv_groups=built.source.conv_groups,
            seed=built.source.seed,
            progress=_line,
            **{name: value for name, value in request.arguments().items() if name != "accept_unreliable"},
            **built.measured_with(),
        )


def _folder(source: ModelOptions, how: SearchOptions) -> Path:
    from proxyprune.modelfile import split_spec

    return how.out or Path(f"{split_spec(source.model)[0].stem}-searched")


def _memory(built: Built, how: SearchOptions) -> Path:
    return how.memory or Path(f"{built.file.path.stem}-search.jsonl")


def _line(entry: Round) -> None:
    """One round on stderr, as it comes."""
    loss = "no loss" if entry.loss is None else f"loss {entry.loss:.5f}"
    again = "" if entry.duplicate_of is None else f" of round {entry.duplicate_of}"
    click.echo(f"round {entry.index:3d}  {loss}  {entry.verdict}{again}  {entry.seconds:.1f} s", err=True)


def _finish(built: Built, result: SearchResult, how: SearchOptions, out: Output) -> None:
    from proxyprune.cli.output.measured_tables import rounds_table, search_table
    from proxyprune.cli.output.tables import remarks
    from proxyprune.plots.search_curve import plot_search
    from proxyprune.saving.network_folder import save

    folder = _folder(built.source, how)
    with out.stage(f"Saving to {folder}"):
        save(result, folder)
    plotted: tuple[str, ...] = ()
    if how.plot is not None:
        plot_search(result, how.plot)
        plotted = (f"Plot: {how.plot}",)
    out.show(rounds_table(result), search_table(result), *remarks(result.graph, (*result.plan.notes, *result.notes)), *plotted)
    out.text(f"\nThe best network is in {folder}, the memory of the search in {_memory(built, how)}.")
    out.emit({**result.to_dict(), "graph": result.graph.to_dict(), "folder": str(folder), "memory": str(_memory(built, how))})
