"""Options of `proxyprune mcp` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from proxyprune.cli.options.shared import file_option, gathered


@dataclass(frozen=True)
class SessionOptions:
    """Options of a tool server.

    Attributes:
        workspace: Folder of the session, or None for a name after the model file.
        replay: Folder of a recorded session to answer from, or None.
        calls: Tool calls that are answered.
        measurements: Networks that are built and measured.
        networks: Networks that are saved.
        seconds_per_call: Time after which a call stops.
        show_source: Whether the assistant may read the source code of blocks.
    """

    workspace: Path | None
    replay: Path | None
    calls: int
    measurements: int
    networks: int
    seconds_per_call: float
    show_source: bool


def _limit(name: str, default: int, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.IntRange(min=1), default=default, show_default=True, help=text)


_OPTIONS = (
    file_option("--workspace", "FOLDER", "Folder for all files of the session (default: FILE-session). A session in it is resumed."),
    file_option("--replay", "FOLDER", "Answer from the session that is recorded there, without a model."),
    _limit("--calls", 1000, "Largest number of tool calls."),
    _limit("--measurements", 64, "Largest number of networks that are built and measured."),
    _limit("--networks", 8, "Largest number of networks that are saved."),
    click.option(
        "--seconds-per-call", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True, help="Time limit of one call."
    ),
    click.option(
        "--source/--no-source", "show_source", default=True, show_default=True, help="Let the assistant read the source code of blocks."
    ),
)

session_options = gathered("how", SessionOptions, _OPTIONS)
"""Give a command the options of `SessionOptions`, as its argument `how`."""
