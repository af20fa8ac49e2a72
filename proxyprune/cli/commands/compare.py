"""`proxyprune compare`: which scorer earns its price on a user's own network."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.compare_options import CompareOptions, compare_options, listed_names
from proxyprune.cli.options.llm import SCORERS, LLMOptions, llm_options
from proxyprune.cli.options.shared import (
    ModelOptions,
    RecoveryOptions,
    cut_options,
    json_option,
    measured_model_options,
    recovery_options,
)
from proxyprune.planning.request import CutKeywords


@click.command(cls=Command, stopped="With --journal, all finished measurements are kept, and --resume continues from them.")
@measured_model_options
@compare_options
@cut_options
@recovery_options
@llm_options
@json_option
@traceback_option
def compare(
    source: ModelOptions, what: CompareOptions, cuts: CutKeywords, recovery: RecoveryOptions, llm: LLMOptions, as_json: bool
) -> None:
    """Compare scorers on a network, with the same cuts, data and recovery.

    For each scorer, the tables show Kendall's tau to the ablation oracle, the held-out loss right after the cut and after a short recovery,
    seconds and money. The model file defines calibration_batches() and loss(model, batch), and may define validation_batches().
    """
    if llm.dry_run:
        raise click.UsageError("--dry-run is an option of `proxyprune score`, which shows the prompt for a language model.")
    if not any(name in SCORERS for name in listed_names(what.scorers)):
        llm.refuse_any("a comparison without a language model")
    if what.resume and what.journal is None:
        raise click.UsageError("--resume continues from a journal; name it with --journal.")
    from proxyprune.cli.actions.compare_scorers import compare_scorers

    compare_scorers(source, what, cuts, recovery, llm, as_json=as_json)
