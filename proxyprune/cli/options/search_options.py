"""Options of `proxyprune search` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from proxyprune.cli.options.completion import proposer_names, scorer_names
from proxyprune.cli.options.llm import SCORERS
from proxyprune.cli.options.shared import file_option, gathered, plot_option


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        proposer: A proposer, or a scorer with memory.
        writer: A language model that is asked for formulas, or None.
        ask_widths: Also ask a language model for exact widths.
        start: Scorer of the first round, or None for the default.
        rounds: Measurements to spend.
        patience: Measurements without improvement after which to stop, or None.
        memory: File of the rounds; None chooses a name after the model file.
        resume: Go on with it.
        out: Folder for the best network; None chooses a name after the model file.
        plot: Where to draw the losses, or None.
        jobs: Number of processes that measure at the same time.
        batch: Proposals from the same rounds, or None for `jobs`.
    """

    proposer: str
    writer: str | None
    ask_widths: bool
    start: str | None
    rounds: int
    patience: int | None
    memory: Path | None
    resume: bool
    out: Path | None
    plot: Path | None
    jobs: int
    batch: int | None


_OPTIONS = (
    click.option(
        "--proposer",
        "-p",
        default="evolution",
        show_default=True,
        metavar="NAME",
        shell_complete=proposer_names,
        help="evolution, coordinate, formula, random, or a scorer; language models get the measurements so far.",
    ),
    click.option(
        "--writer",
        type=click.Choice(SCORERS),
        help="With --proposer formula, a language model that proposes a formula in every third round.",
    ),
    click.option(
        "--ask-widths",
        is_flag=True,
        help="With a language model as proposer, also request exact widths of channel groups; the solver keeps the budget.",
    ),
    click.option(
        "--start",
        metavar="SCORER",
        shell_complete=scorer_names,
        help="Scorer of the first round (default: the proposer if it is a scorer, else taylor).",
    ),
    click.option("--rounds", type=click.IntRange(min=1), default=16, show_default=True, help="Number of measurements, the first included."),
    click.option("--patience", type=click.IntRange(min=1), metavar="N", help="Stop after N measurements without improvement."),
    file_option("--memory", "FILE", "File that records every round (default: FILE-search.jsonl)."),
    click.option(
        "--resume", is_flag=True, help="Continue from the rounds in the memory, with the same result as without the interruption."
    ),
    file_option("--out", "PATH", "Folder for the best network (default: FILE-searched)."),
    plot_option("the loss by measurement, and the best so far"),
    click.option(
        "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes that measure at the same time."
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        metavar="N",
        help="Number of proposals made from the same rounds (default: --jobs). The result depends on it, not on --jobs.",
    ),
)

search_options = gathered("how", SearchOptions, _OPTIONS)
"""Give a command the options of `SearchOptions`, as its argument `how`."""
