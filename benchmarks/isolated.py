"""Run a function in a process of its own, with limits of CPU time and memory; what it reports survives its end."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
Work = Callable[[Callable[[Result], None]], None]
"""Receives a function that records its result so far; the last record counts."""


_WAITING = 4


@dataclass(frozen=True)
class Limits:
    """Limits of one process: CPU time, and address space; on a busy machine it may take `_WAITING` times as long."""

    seconds: float = 120.0
    gib: float = 14.0


@dataclass(frozen=True)
class Outcome:
    """The last record of the process, and the reason if it did not end by itself."""

    result: Result
    problem: str | None = None


def run_isolated(work: Work, limits: Limits) -> Outcome:
    """Fork, so that libraries that are imported already cost nothing, and wait.

    Args:
        work: What to run; exceptions are for it to handle.
        limits: When the process is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        process = multiprocessing.get_context("fork").Process(target=_in_child, args=(work, record, limits))
        process.start()
        process.join(_WAITING * limits.seconds)
        late = process.is_alive()
        if late:
            process.kill()
        process.join()
        result = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if late:
        return Outcome(result, f"stopped after waiting for {_WAITING * limits.seconds:.0f} s")
    return Outcome(result, _meaning(process.exitcode, limits))


def _in_child(work: Work, record: Path, limits: Limits) -> None:
    size = int(limits.gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (int(limits.seconds), int(limits.seconds) + 5))
    os.environ["TMPDIR"] = str(record.parent)  # temporary files of a killed process go with the folder
    tempfile.tempdir = None
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # torch.export prints whole graphs when it fails
        os.dup2(sink, stream)

    def put(result: Result) -> None:
        fresh = record.with_suffix(".new")
        fresh.write_text(json.dumps(result), encoding="utf-8")
        fresh.replace(record)

    work(put)


def _meaning(code: int | None, limits: Limits) -> str | None:
    if code == 0:
        return None
    if code == -signal.SIGXCPU:
        return f"stopped after {limits.seconds:.0f} s of CPU time"
    if code is not None and code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
