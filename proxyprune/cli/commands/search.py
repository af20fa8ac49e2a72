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


@click.command(cls=Command, stopped="The rounds so far are kept; the same command with --resume goes on from there.")
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
    """Search for the best network of a budget by measuring proposals.

    Each round proposes a ranking, plans, cuts and measures the loss on held-out batches. The model file defines calibration_batches() and
    loss(model, batch), and may define validation_batches() to measure with. A killed search goes on with --resume.
    """
    if llm.dry_run:
        raise click.UsageError("--dry-run belongs to `proxyprune score`, which shows what a language model would be sent.")
    from proxyprune.cli.actions.search_networks import search_networks

    search_networks(source, request, how, recovery, llm, timing=timing, as_json=as_json)
