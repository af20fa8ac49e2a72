"""`proxyprune search`: measure proposals until the budget of measurements is spent, and save the best network."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.llm import LLMOptions, llm_options
from proxyprune.cli.options.search_options import SearchOptions, search_options
from proxyprune.cli.options.shared import (
    ModelOptions,
    RecoveryOptions,
    json_option,
    measured_model_options,
    plan_options,
    recovery_options,
)
from proxyprune.cli.options.timing import timing_options
from proxyprune.measuring.timing import Timing
from proxyprune.planning.request import PlanRequest


@click.command(cls=Command, stopped="The finished rounds are kept; the same command with --resume continues from them.")
@measured_model_options
@plan_options
@search_options
@recovery_options
@llm_options
@timing_options
@json_option
@traceback_option
def search(
    source: ModelOptions,
    request: PlanRequest,
    how: SearchOptions,
    recovery: RecoveryOptions,
    llm: LLMOptions,
    timing: Timing,
    as_json: bool,
) -> None:
    """Search for the best network within a budget by measuring proposals.

    In each round, a proposed ranking is planned, cut and measured on held-out batches. The model file defines calibration_batches() and
    loss(model, batch), and may define validation_batches() for measuring. --resume continues a search that was stopped.
    """
    if llm.dry_run:
        raise click.UsageError("--dry-run is an option of `proxyprune score`, which shows the prompt for a language model.")
    from proxyprune.cli.actions.search_networks import search_networks

    search_networks(source, request, how, recovery, llm, timing=timing, as_json=as_json)
