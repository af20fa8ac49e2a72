"""Ctrl-C and SIGTERM while a stage is trained: the step is finished, a checkpoint is written, and training stops."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from proxyprune.diffusion.training.accelerator import Accelerator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOP = 2  # reported by a process that was stopped; a due checkpoint is 1, and only the main process reports it


class TrainingStopped(KeyboardInterrupt):
    """Training was stopped from outside; the message names the step of the checkpoint. Like Ctrl-C, it is no `Exception`."""


class Watch:
    """Decides after each step whether a checkpoint is due or training stops, alike in all processes.

    While it is entered, the first SIGINT or SIGTERM is remembered and a second one acts as it did before. Outside of the main thread,
    where Python allows no handlers, signals act as ever.

    Args:
        accelerator: accelerate's Accelerator.
        minutes: Between checkpoints; 0 for none by time.
    """

    def __init__(self, accelerator: Accelerator, minutes: float) -> None:
        self._accelerator = accelerator
        self._seconds = 60.0 * minutes
        self._saved = time.monotonic()
        self._heard = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._heard = True
        self._restore()  # so that a second one stops at once

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self._saved = time.monotonic()

    def decision(self) -> tuple[bool, bool]:
        """Return whether a checkpoint is due, and whether training stops after it. All processes call this together."""
        main = self._accelerator.is_main_process
        due = bool(self._seconds) and main and time.monotonic() - self._saved >= self._seconds
        wanted = _STOP * self._heard + due
        if self._accelerator.num_processes > 1:
            # One process alone measures time, so a sum of 1 is a checkpoint, and more means that some process was stopped.
            wanted = int(self._accelerator.reduce(torch.tensor(wanted, device=self._accelerator.device), "sum"))
        return wanted > 0, wanted >= _STOP
