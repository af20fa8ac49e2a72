"""Options of `proxyprune compare` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from proxyprune.cli.options.completion import scorer_list
from proxyprune.cli.options.shared import file_option, gathered, plot_option


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison.

    Attributes:
        scorers: Names, separated by commas.
        targets: Budgets, separated by commas.
        modes: Modes, separated by commas.
        seeds: How many seeds, from --seed on.
        peer: Pruners of other libraries.
        calibration: Batches that a scorer sees, or None for all.
        journal: File of the measurements, or None to keep none.
        resume: Go on with it.
        plot: Where to draw, or None.
    """

    scorers: str
    targets: str
    modes: str
    seeds: int
    peer: tuple[str, ...]
    calibration: int | None
    journal: Path | None
    resume: bool
    plot: Path | None


_OPTIONS = (
    click.option(
        "--scorers",
        "-s",
        default="magnitude,taylor,random",
        show_default=True,
        metavar="A,B,...",
        shell_complete=scorer_list,
        help="Names of registered scorers.",
    ),
    click.option(
        "--targets", "-t", default="0.8,0.6,0.4", show_default=True, metavar="T,...", help="Fractions of the unpruned network, or amounts."
    ),
    click.option("--modes", default="width", show_default=True, metavar="MODE,...", help="Modes out of width, depth and both."),
    click.option(
        "--seeds",
        type=click.IntRange(min=1),
        default=3,
        show_default=True,
        help="Number of repetitions, with consecutive seeds from --seed.",
    ),
    click.option(
        "--peer",
        multiple=True,
        type=click.Choice(["torch-pruning-magnitude", "torch-pruning-taylor"]),
        help="Pruner of another library to compare at the same budgets; repeatable.",
    ),
    click.option(
        "--calibration", type=click.IntRange(min=1), metavar="N", help="Give scorers N batches, drawn for each seed (default: all batches)."
    ),
    file_option("--journal", "FILE", "File that records every measurement."),
    click.option("--resume", is_flag=True, help="Continue from the measurements in the journal."),
    plot_option("agreement with the oracle, and loss by target"),
)


def listed_names(text: str) -> list[str]:
    """Split names at commas that stand outside of parentheses; a formula may have some inside."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


compare_options = gathered("what", CompareOptions, _OPTIONS)
"""Give a command the options of `CompareOptions`, as its argument `what`."""
