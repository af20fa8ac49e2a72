"""`proxyprune mcp`: a tool server with which an assistant drives pruning."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.session_options import SessionOptions, session_options
from proxyprune.cli.options.shared import ModelOptions, RecoveryOptions, optional_model_options, plan_options, recovery_options
from proxyprune.cli.options.timing import timing_options
from proxyprune.measuring.timing import Timing
from proxyprune.planning.request import PlanRequest


@click.command(cls=Command, stopped="The workspace contains every answered call; the same command resumes the session.")
@optional_model_options
@plan_options
@session_options
@timing_options
@recovery_options
@traceback_option
def mcp(source: ModelOptions | None, request: PlanRequest, how: SessionOptions, timing: Timing, recovery: RecoveryOptions) -> None:
    """Serve tools to an assistant over the Model Context Protocol.

    An assistant starts this command and uses it over stdin and stdout. It can describe, score, price, plan, measure, compare and apply,
    within the target and the limits that you give. Every call is recorded in the workspace, and --replay answers from the record.
    """
    if (source is None) == (how.replay is None):
        raise click.UsageError("Give either --model, or --replay with a recorded session.")
    from proxyprune.cli.actions.serve_assistant import serve_assistant, serve_replay

    if source is None:
        serve_replay(how)
    else:
        serve_assistant(source, request, how, recovery, timing)
