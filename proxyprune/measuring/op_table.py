"""The cost table of this machine: measured times of op calls, kept in the user's cache folder, one file for each kind of measurement."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxyprune.measuring.op_calls import OpCall
from proxyprune.measuring.op_timer import OpTimer
from proxyprune.measuring.table_file import SCHEMA, read_table, times_folder
from proxyprune.support.files import write_json
from proxyprune.support.progress import bar

_SECONDS_BETWEEN_SAVES = 5.0


def machine(device: str, threads: int) -> dict[str, str | int]:
    """Return what decides how long an op takes here: processor, device, threads, versions.

    Args:
        device: Name of the device.
        threads: Threads that torch uses.
    """
    import torch

    return {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):  # only Linux has the file; elsewhere the platform's own name counts
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass
class OpTable:
    """Times in one file.

    Attributes:
        path: The file.
        machine: What the times hold for.
        nanoseconds: Text of a call -> its time.
        networks: Key of a whole network -> nanoseconds of one run.
        measured_now: Number of calls that were measured in this process.
    """

    path: Path
    machine: Mapping[str, str | int]
    nanoseconds: dict[str, int] = field(default_factory=dict, repr=False)
    networks: dict[str, int] = field(default_factory=dict, repr=False)
    measured_now: int = 0

    @staticmethod
    def opened(machine: Mapping[str, str | int], folder: Path | None = None) -> OpTable:
        """Read the table of a machine; a missing or damaged file is an empty table.

        Args:
            machine: From `machine`.
            folder: Folder of the tables; the user's cache folder by default.
        """
        digest = hashlib.sha256(json.dumps(dict(machine), sort_keys=True).encode()).hexdigest()[:16]
        table = OpTable((folder or times_folder()) / f"{digest}.json", machine)
        table._merge()
        return table

    def fill(self, calls: Sequence[OpCall], timer: OpTimer, *, progress: bool = False) -> tuple[str, ...]:
        """Measure the calls that are missing, and save them as they come.

        Returns:
            Texts of calls that cannot be measured.
        """
        missing = list({call.text: call for call in calls if call.text not in self.nanoseconds}.values())
        if not missing:
            return ()
        saved, done = time.monotonic(), 0
        try:
            with bar("Timing the ops of this network", len(missing), shown=progress) as advance:
                for call, nanoseconds in timer.measure(missing):
                    self.nanoseconds[call.text] = max(1, nanoseconds)
                    done += 1
                    advance(done, str(call.target))
                    if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                        self.save()
                        saved = time.monotonic()
        finally:
            self.measured_now += done
            if done:
                self.save()
        return tuple(call.text for call in missing if call.text not in self.nanoseconds)

    def save(self) -> None:
        """Write the table in one step; what another process added meanwhile stays.

        Raises:
            StorageError: If it cannot be written.
        """
        own, networks = dict(self.nanoseconds), dict(self.networks)
        self._merge()
        self.nanoseconds.update(own)
        self.networks.update(networks)
        content = {"schema": SCHEMA, "machine": dict(self.machine), "nanoseconds": self.nanoseconds, "networks": self.networks}
        write_json(self.path, content)

    def _merge(self) -> None:
        content = read_table(self.path)
        if content is not None and content["machine"] == dict(self.machine):
            self.nanoseconds.update(content["nanoseconds"])
            self.networks.update(content["networks"])
