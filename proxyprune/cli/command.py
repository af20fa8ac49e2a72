"""Early ends of a command: one message on stderr, exit code 2 for every error that proxyprune raises on purpose and 130 for Ctrl-C."""

from __future__ import annotations

from typing import Any

import click

from proxyprune.errors import ProxyPruneError
from proxyprune.support.extras import explained

_WANTS_TRACEBACK = "proxyprune.traceback"


class Failure(click.ClickException):
    """A ProxyPruneError, as the command line shows it."""

    exit_code = 2

    def __init__(self, error: ProxyPruneError) -> None:
        super().__init__(str(error))
        self.error = error


class Stopped(click.ClickException):
    """Ctrl-C, with what that leaves behind."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"\n{self.format_message()}", err=True)


class Command(click.Command):
    """A command that turns `ProxyPruneError` and Ctrl-C into a message, or lets them through under `--traceback`.

    Args:
        stopped: What Ctrl-C leaves behind, and how to go on. What the interruption itself says stands before it.
    """

    def __init__(self, *args: Any, stopped: str = "The result was not written.", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopped = stopped

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with explained(f"`{ctx.command_path}`"):
                return super().invoke(ctx)
        except ProxyPruneError as error:
            if ctx.meta.get(_WANTS_TRACEBACK):
                raise
            raise Failure(error) from error
        except KeyboardInterrupt as error:
            if ctx.meta.get(_WANTS_TRACEBACK):
                raise
            raise Stopped(f"{str(error) or 'Stopped.'} {self._stopped}") from error


def _remember(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    ctx.meta[_WANTS_TRACEBACK] = value


traceback_option = click.option(
    "--traceback", is_flag=True, expose_value=False, is_eager=True, callback=_remember, help="Show the whole traceback of an error."
)
