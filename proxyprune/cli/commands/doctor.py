"""`proxyprune doctor`: what works here, and what to do about the rest."""

from __future__ import annotations

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import json_option


@click.command(cls=Command)
@json_option
@traceback_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Report what is installed, which devices work, which data sets were found, and what is missing.

    Nothing is sent anywhere. The exit code is 2 if something that should work does not. A missing extra is not an error.
    """
    from proxyprune.cli.actions.diagnose import diagnose

    if not diagnose(as_json=as_json):
        ctx.exit(2)
