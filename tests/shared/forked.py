"""Python in processes of their own that need not import torch and diffusers again: they fork from one that has imported both.

A process takes several seconds for these imports, and a test of a training run needs it for what comes after them. Tests of starting
itself, and of what imports do, use subprocess.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[2]
_IMPORTED = ("torch", "accelerate", "diffusers", "proxyprune.diffusion.trainer", "proxyprune.cli.commands.diffusion")
_AFTER_A_FAILURE = 60.0
"""Seconds."""


@cache
def _forking() -> BaseContext:
    """Return the way to start processes; Windows has none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


class Forked:
    """`python -m MODULE ARGUMENTS` in one or several processes, with the methods of `subprocess.Popen` that tests need.

    Attributes:
        pids: Process ids, by rank.
        returncode: 0 if every process ended well, else the first other exit code; negative for a signal. None before the end.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], *, processes: int = 1) -> None:
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if processes > 1 else None
        self._processes = []
        for rank in range(processes):
            own = dict(environment) | {"OMP_NUM_THREADS": "1"} | self._place(rank, processes)
            given = (module, list(arguments), own, f"{self._folder.name}/{rank}")
            self._processes.append(_forking().Process(target=_run, args=given, daemon=True))
        with _one_thread():
            for process in self._processes:
                process.start()
        self.pids = [process.pid for process in self._processes]

    def _place(self, rank: int, processes: int) -> dict[str, str]:
        """Return the variables that torchrun sets; the store is in this process, as it is in torchrun's."""
        if self._store is None:
            return {}
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        return {name: str(value) for name, value in {**place, **store, "TORCHELASTIC_RUN_ID": "forked"}.items()}

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.send_signal(signal.SIGKILL)
        self.communicate()

    def poll(self) -> int | None:
        """Return the exit code, or None while a process runs."""
        codes = [process.exitcode for process in self._processes]
        if self.returncode is None and None not in codes:
            self.returncode = next((code for code in codes if code), 0)
        return self.returncode

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """Wait for the end and return what was printed to stdout and stderr.

        What runs longer than `timeout` seconds is killed, and what runs long after another process failed, as torchrun does.
        """
        while self.poll() is None:
            running = [process.sentinel for process in self._processes if process.exitcode is None]
            failed = any(process.exitcode for process in self._processes)
            if not wait(running, _AFTER_A_FAILURE if failed else timeout):
                self.send_signal(signal.SIGKILL)
                if not failed:
                    raise TimeoutError(f"still running after {timeout} seconds:\n{self.text('err')}")
        return self.text("out"), self.text("err")

    def text(self, stream: str) -> str:
        """Return what all processes have printed so far to "out" or "err"."""
        files = [Path(f"{self._folder.name}/{rank}.{stream}") for rank in range(len(self._processes))]
        return "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())

    def send_signal(self, number: int) -> None:
        """Send a signal to every process that runs."""
        for process in self._processes:
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


@contextlib.contextmanager
def _one_thread():
    """Let the process that the others fork from start with one thread, if it starts now."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _run(module: str, arguments: list[str], environment: dict[str, str], place: str) -> None:
    """Become `python -m MODULE ARGUMENTS`, which prints into two files."""
    gc.freeze()  # what was imported stays, and each collection would examine it again
    for number, stream in ((1, "out"), (2, "err")):
        file = os.open(f"{place}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with the signal ignored
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
