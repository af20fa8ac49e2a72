"""Streams of output: results to stdout, progress and remarks to stderr, and with --json nothing but JSON to stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_PIPED_WIDTH = 160
"""Columns when stdout is no terminal: wide enough that a table in a log file keeps its lines whole."""


@dataclass(frozen=True)
class Output:
    """The streams that a command writes to.

    Attributes:
        as_json: Machines read stdout; tables are not shown.
    """

    as_json: bool
    _stdout: Any = field(default_factory=lambda: sys.stdout, repr=False)

    def show(self, *renderables: RenderableType | None) -> None:
        """Print tables or text for a reader, one below the other; None is passed over, and under --json everything is."""
        if self.as_json:
            return
        console = Console(file=self._stdout, highlight=False, markup=False)
        if not console.is_terminal and "COLUMNS" not in console._environ:
            console = Console(file=self._stdout, highlight=False, markup=False, width=_PIPED_WIDTH)
        for renderable in renderables:
            if renderable is not None:
                console.print(renderable)

    def text(self, text: str) -> None:
        """Print plain text exactly as it is, without wrapping; nothing under --json."""
        if not self.as_json:
            click.echo(text, file=self._stdout)

    def emit(self, data: Any) -> None:
        """Print JSON, under --json only."""
        if self.as_json:
            click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False), file=self._stdout)

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Callable[[str], None]]:
        """Show a spinner with the time spent while something long runs; only on a terminal.

        Yields:
            A function that shows how far it is, beside the label.
        """
        console = Console(stderr=True, highlight=False, markup=False)
        if not console.is_terminal:
            yield lambda _: None
            return
        started = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda remark: progress.update(task, description=f"{label}: {remark}")
        console.print(Text.assemble(("✓ ", "green"), label, (f" {time.perf_counter() - started:.1f} s", "dim")))

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a progress bar with the time left while something long runs; only on a terminal.

        Yields:
            A function that advances the bar by a number of units.
        """
        console = Console(stderr=True, highlight=False, markup=False)
        if not console.is_terminal:
            yield lambda _: None
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def output(as_json: bool) -> Iterator[Output]:
    """Open the output of one command.

    Under --json the process's stdout is turned to stderr meanwhile, because a model file may print and a library may too.
    """
    out = Output(as_json)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield out
