"""How a command fails: one message on stderr and exit code 2, for every error that proxyprune raises on purpose."""

from __future__ import annotations

from typing import Any

import click

from proxyprune.errors import ProxyPruneError
from proxyprune.extras import explained

_WANTS_TRACEBACK = "proxyprune.traceback"


class Failure(click.ClickException):
    """A ProxyPruneError, as the command line shows it."""

    exit_code = 2

    def __init__(self, error: ProxyPruneError) -> None:
        super().__init__(str(error))
        self.error = error


class Command(click.Command):
    """A command that turns `ProxyPruneError` into a message, or lets it through under `--traceback`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with explained(f"`{ctx.command_path}`"):
                return super().invoke(ctx)
        except ProxyPruneError as error:
            if ctx.meta.get(_WANTS_TRACEBACK):
                raise
            raise Failure(error) from error


def _remember(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    ctx.meta[_WANTS_TRACEBACK] = value


traceback_option = click.option(
    "--traceback", is_flag=True, expose_value=False, is_eager=True, callback=_remember, help="Show the whole traceback of an error."
)
