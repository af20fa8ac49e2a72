"""`proxyprune scorers`: what is registered, and what of it works."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import json_option


@click.command(cls=Command)
@json_option
@traceback_option
def scorers(as_json: bool) -> None:
    """List the scorers with their source and requirements.

    A plug-in that cannot be used is listed with its error.
    """
    from proxyprune.cli.actions.list_scorers import list_scorers

    list_scorers(as_json=as_json)
