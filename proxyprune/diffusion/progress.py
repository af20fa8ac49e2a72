"""A progress bar with loss, speed and time left; only on a terminal, and only in the main process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int, str], None]


def _silent(done: int, note: str) -> None:
    return


@contextlib.contextmanager
def bar(label: str, total: int, *, shown: bool) -> Iterator[Advance]:
    """Yield a function that takes how much is done and a remark.

    Args:
        label: What is being done.
        total: When it is done.
        shown: Whether to show anything.
    """
    if not shown:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _silent
        return
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)
