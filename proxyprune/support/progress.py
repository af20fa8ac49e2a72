"""Progress with loss, speed and time left: a bar on a terminal, now and then a line elsewhere; only in the main process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int, str], None]
SECONDS_BETWEEN_LINES = 30.0


def _silent(done: int, note: str) -> None:
    return


def _lines(label: str, total: int, write: Callable[[str], object], seconds: float) -> Advance:
    """Write at most one line in so many seconds, for the log file of a job."""
    last = time.monotonic()
    first: tuple[int, float] | None = None  # what was done when it was first asked, and when

    def advance(done: int, note: str) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = first or (done, now)
        if now - last >= seconds:
            last = now
            pace = (now - first[1]) / (done - first[0]) if done > first[0] else None
            left = "" if pace is None else f"  {duration(pace * (total - done))} left"
            write(f"{label}: {done:,} of {total:,}  {note}{left}")

    return advance


def duration(seconds: float) -> str:
    """Return a length of time in the unit that suits it, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


@contextlib.contextmanager
def bar(label: str, total: int, *, shown: bool, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> Iterator[Advance]:
    """Yield a function that takes how much is done and a remark.

    Args:
        label: What is being done.
        total: When it is done.
        shown: Whether to show anything.
        seconds_between_lines: Least time between two lines where there is no terminal.
    """
    if not shown:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(label, total, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True), seconds_between_lines)
        return
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)
