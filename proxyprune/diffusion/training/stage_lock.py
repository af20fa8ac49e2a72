"""One job at a time works on a stage: a second one waits, and finds the stage done."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from proxyprune.diffusion.run_folder import StageFolder

try:
    import fcntl
except ImportError:  # Windows has no such locks; two jobs on one stage are not noticed there
    fcntl = None  # type: ignore[assignment]  # not on Windows


@contextlib.contextmanager
def claimed(folder: Path, *, mine: bool = True) -> Iterator[None]:
    """Hold a stage's folder while it is worked on; the system lets go of it when the process ends, however it ends.

    Args:
        folder: Of the stage; created.
        mine: Whether this process is the one that writes; the others of a run pass.
    """
    if fcntl is None or not mine:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(StageFolder(folder).lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).warning("Another job works in %s; waiting until it has finished or stopped.", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield
            return
        yield
    finally:
        os.close(handle)
