"""Measure proposals until the budget of measurements is spent, and save the best network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from proxyprune.cli.loading import Built, build, scorer_named
from proxyprune.cli.options.llm import SCORERS, LLMOptions
from proxyprune.cli.options.search_options import SearchOptions
from proxyprune.cli.options.shared import ModelOptions, RecoveryOptions
from proxyprune.cli.output.console import Output, output
from proxyprune.cli.output.measured_tables import rounds_table, search_table
from proxyprune.cli.output.tables import remarks
from proxyprune.measuring.timing import Timing
from proxyprune.modelfile import split_spec
from proxyprune.planning.request import PlanRequest
from proxyprune.plots.figure import check_plot_path
from proxyprune.plots.search_curve import plot_search
from proxyprune.saving.destination import check_folder
from proxyprune.saving.network_folder import save
from proxyprune.scoring.contract import shows_time
from proxyprune.scoring.registry import find
from proxyprune.searching import FormulaProposer, Proposer, Round, SearchResult, proposer_named, search
from proxyprune.searching.proposers.scorer_proposer import ScorerProposer


def search_networks(
    source: ModelOptions,
    request: PlanRequest,
    how: SearchOptions,
    recovery: RecoveryOptions,
    llm: LLMOptions,
    *,
    timing: Timing,
    as_json: bool,
) -> None:
    """Search, save the best network, and print the rounds."""
    if how.plot is not None:
        check_plot_path(how.plot)
    check_folder(_folder(source, how))
    with output(as_json) as out:
        proposer = _proposer(how, llm)
        built = build(source, out)
        if request.needs_times or (isinstance(proposer, ScorerProposer) and shows_time(proposer.scorer)):
            built.timed(built.trace(out), timing)  # filled here, where a bar can be shown
        result = _search(built, proposer, request, how, recovery, timing, out)
        _finish(built, result, how, out)


def _proposer(how: SearchOptions, llm: LLMOptions) -> Proposer:
    """Find the proposer before anything slow happens; a language model gets its options, which hold for every round."""
    name = how.proposer
    if how.ask_widths and name not in SCORERS:
        raise click.UsageError(
            f"--ask-widths needs a language model as proposer, and '{name}' is not one. Use --proposer {', '.join(SCORERS)}."
        )
    if how.writer is not None:
        if name != "formula":
            raise click.UsageError(f"--writer writes formulas, and proposer '{name}' uses none. Use --proposer formula.")
        return FormulaProposer(writer=find(how.writer, llm.scorer_options(how.writer)))  # type: ignore[arg-type]  # one of SCORERS
    if name in SCORERS:
        scorer: Any = scorer_named(name, llm).scorer
        return ScorerProposer(replace(scorer, ask_widths=True) if how.ask_widths else scorer)
    llm.refuse_any(f"proposer '{name}'")
    return proposer_named(name)


def _search(
    built: Built, proposer: Proposer, request: PlanRequest, how: SearchOptions, recovery: RecoveryOptions, timing: Timing, out: Output
) -> SearchResult:
    with out.bar(f"Searching with {proposer.name}", how.rounds, "measurements") as advance:

        def show(entry: Round) -> None:
            _line(entry)
            advance(int(entry.measured))

        return search(
            built.model,
            built.inputs,
            request.target,
            proposer,
            also=built.also,
            rounds=how.rounds,
            patience=how.patience,
            start=how.start,
            recovery=recovery.recovery(default_steps=0),
            memory=_memory(built, how),
            resume=how.resume,
            **built.source.trace_keywords,
            seed=built.source.seed,
            jobs=how.jobs,
            batch=how.batch,
            timing=timing,
            progress=show,
            **request.keywords(),
            **built.measured_with(),
        )


def _folder(source: ModelOptions, how: SearchOptions) -> Path:
    return how.out or Path(f"{split_spec(source.model)[0].stem}-searched")


def _memory(built: Built, how: SearchOptions) -> Path:
    return how.memory or Path(f"{built.file.path.stem}-search.jsonl")


def _line(entry: Round) -> None:
    """One round on stderr, as it comes."""
    loss = "no loss" if entry.loss is None else f"loss {entry.loss:.5f}"
    again = "" if entry.duplicate_of is None else f" of round {entry.duplicate_of}"
    click.echo(f"round {entry.index:3d}  {loss}  {entry.verdict}{again}  {entry.seconds:.1f} s", err=True)


def _finish(built: Built, result: SearchResult, how: SearchOptions, out: Output) -> None:
    folder = _folder(built.source, how)
    with out.stage(f"Saving to {folder}"):
        save(result, folder)
    plotted: tuple[str, ...] = ()
    if how.plot is not None:
        plot_search(result, how.plot)
        plotted = (f"Plot: {how.plot}",)
    measured = result.report.time
    timed = () if measured is None else (f"• {measured.sentence}. Target: {measured.target_ratio:.1%}.",)
    out.show(rounds_table(result), search_table(result), *timed, *remarks(result.graph, (*result.plan.notes, *result.notes)), *plotted)
    if result.formula is not None:
        out.text(f"\nThe best formula is: {result.formula}\nUse it on another network with --scorer 'formula={result.formula}'.")
    out.text(f"\nThe best network is in {folder}, the memory of the search in {_memory(built, how)}.")
    out.emit({**result.to_dict(), "graph": result.graph.to_dict(), "folder": str(folder), "memory": str(_memory(built, how))})
