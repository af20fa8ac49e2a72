"""`proxyprune describe`: the network as a text graph."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import ModelOptions, json_option, model_options
from proxyprune.cli.options.timing import timing_options
from proxyprune.measuring.timing import Timing


@click.command(cls=Command)
@model_options
@click.option("--time", "timed", is_flag=True, help="Show each block's share of the time of a run on this machine.")
@timing_options
@json_option
@traceback_option
def describe(source: ModelOptions, timed: bool, timing: Timing, as_json: bool) -> None:
    """Show the blocks of a network, their cost and their connections.

    The same network always gives the same text, byte for byte. Language models get another text, without names. `proxyprune score
    --dry-run` prints it.
    """
    from proxyprune.cli.actions.describe_network import describe_network

    describe_network(source, timing if timed else None, as_json=as_json)
