"""`proxyprune describe`: the network as a text graph."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import ModelOptions, json_option, model_options


@click.command(cls=Command)
@model_options
@json_option
@traceback_option
def describe(source: ModelOptions, as_json: bool) -> None:
    """Show a network's blocks, their cost, and how they are wired.

    The text is the same for the same network, byte for byte. A language model is shown another one, without names: `proxyprune score
    --dry-run` prints it.
    """
    from proxyprune.cli.actions.describe_network import describe_network

    describe_network(source, as_json=as_json)
