"""Findings of `proxyprune doctor`, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement


@dataclass(frozen=True)
class Package:
    """A requirement and how it is met.

    Attributes:
        name: Distribution name.
        wanted: Version range of pyproject.toml; "" takes any.
        found: Installed version, or None.
        extra: Extra that asks for it; "" for the package's own requirements.
    """

    name: str
    wanted: str
    found: str | None
    extra: str = ""

    @property
    def problem(self) -> str | None:
        """The fault, or None."""
        if self.found is None:
            return "is not installed"
        if not Requirement(f"{self.name}{self.wanted}").specifier.contains(self.found, prereleases=True):
            return f"is {self.found}, but {self.wanted} is needed"
        return None


@dataclass(frozen=True)
class Device:
    """A device that torch names, and what became of a small convolution on it: None when it gave what the CPU gives."""

    name: str
    description: str
    problem: str | None


@dataclass(frozen=True)
class DataSet:
    """A data set that diffusion training knows by name.

    Attributes:
        name: As given to `--source`.
        place: Where it is, or what brings it; None when it is not here.
        advice: How to get it; "" when it is here.
    """

    name: str
    place: str | None
    advice: str


@dataclass(frozen=True)
class TimeTable:
    """A cost table in the cache folder.

    Attributes:
        path: The file.
        machine: What its times hold for: processor, device, threads, versions.
        calls: Number of op calls in it.
        networks: Number of whole networks in it.
    """

    path: str
    machine: str
    calls: int
    networks: int


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `proxyprune doctor` reports.

    Attributes:
        version: Of proxyprune.
        python: Version and implementation.
        system: Operating system and processor.
        cores: Logical processors.
        packages: Own requirements first, then those of each extra.
        devices: What torch can use here.
        scorers: (name, origin, error or None) of every registered scorer.
        keys: Environment variable -> whether it is set.
        data_sets: Named data sets, found or not.
        time_tables: Cost tables in the cache folder.
    """

    version: str
    python: str
    system: str
    cores: int
    packages: tuple[Package, ...]
    devices: tuple[Device, ...]
    scorers: tuple[tuple[str, str, str | None], ...]
    keys: dict[str, bool]
    data_sets: tuple[DataSet, ...] = ()
    time_tables: tuple[TimeTable, ...] = ()

    @property
    def extras(self) -> dict[str, tuple[Package, ...]]:
        """Extra -> its packages that are missing or too old; empty when it is complete."""
        names = dict.fromkeys(package.extra for package in self.packages if package.extra)
        return {name: tuple(p for p in self.packages if p.extra == name and p.problem is not None) for name in names}

    @property
    def problems(self) -> tuple[str, ...]:
        """The faults of what should work; an extra or a data set that is left out is no problem."""
        broken = [f"{p.name} {p.problem}. Run: pip install '{p.name}{p.wanted}'" for p in self.packages if not p.extra and p.problem]
        broken += [f"Device {device.name}: {device.problem}" for device in self.devices if device.problem]
        broken += [f"Scorer {name}: {error}" for name, _, error in self.scorers if error]
        return tuple(broken)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": 1,
            "version": self.version,
            "python": self.python,
            "system": self.system,
            "cores": self.cores,
            "packages": [{"name": p.name, "wanted": p.wanted, "found": p.found, "extra": p.extra or None} for p in self.packages],
            "devices": [{"name": d.name, "description": d.description, "problem": d.problem} for d in self.devices],
            "scorers": [{"name": name, "origin": origin, "error": error} for name, origin, error in self.scorers],
            "keys": dict(self.keys),
            "data_sets": [{"name": d.name, "place": d.place, "advice": d.advice or None} for d in self.data_sets],
            "time_tables": [{"path": t.path, "machine": t.machine, "calls": t.calls, "networks": t.networks} for t in self.time_tables],
            "problems": list(self.problems),
        }
