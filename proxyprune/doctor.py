"""What is installed here, what works, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from proxyprune.scoring.registry import scorers

DISTRIBUTION = "proxyprune"
GATHERING_EXTRAS = ("all",)
"""Extras that only name other extras."""

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "PROXYPRUNE_LLM_API_KEY")
"""Environment variables that scorers read; a diagnosis says whether they are set and never what they hold."""


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
        """What is wrong with it, or None."""
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

    @property
    def extras(self) -> dict[str, tuple[Package, ...]]:
        """Extra -> its packages that are missing or too old; empty when it is complete."""
        names = dict.fromkeys(package.extra for package in self.packages if package.extra)
        return {name: tuple(p for p in self.packages if p.extra == name and p.problem is not None) for name in names}

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps something from working that should work; an extra or a data set that is left out is no problem."""
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
            "problems": list(self.problems),
        }


def examine(data_sets: tuple[DataSet, ...] = ()) -> Diagnosis:
    """Look at this environment. Nothing is sent anywhere, and no key is read beyond whether it is there.

    Args:
        data_sets: What was found of them, by whoever knows where they lie (`proxyprune.diffusion.available`).
    """
    from proxyprune import __version__

    packages = tuple(_packages())
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} ({sys.implementation.name})",
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=os.cpu_count() or 1,
        packages=packages,
        devices=tuple(_devices()),
        scorers=tuple((info.name, info.origin, info.error) for info in scorers()),
        keys={name: bool(os.environ.get(name)) for name in KEYS},
        data_sets=data_sets,
    )


def _packages() -> Iterator[Package]:
    try:
        requirements = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield Package(DISTRIBUTION, "", None)  # run from a source tree
        return
    extras = [name for name in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or () if name not in GATHERING_EXTRAS]
    own = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    yield from (_package(requirement, "") for requirement in own)
    for extra in extras:
        added = [r for r in requirements if r not in own and r.marker is not None and r.marker.evaluate({"extra": extra})]
        yield from (_package(requirement, extra) for requirement in added)


def _package(requirement: Requirement, extra: str) -> Package:
    try:
        found: str | None = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        found = None
    return Package(requirement.name, str(requirement.specifier), found, extra)


def _devices() -> Iterator[Device]:
    try:
        import torch
    except ImportError as error:
        yield Device("cpu", "", f"torch cannot be imported ({error}). Run: pip install torch")
        return
    yield Device("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}", _tried("cpu"))
    for index in range(torch.cuda.device_count()):
        yield Device(f"cuda:{index}", torch.cuda.get_device_name(index), _tried(f"cuda:{index}"))
    if torch.backends.mps.is_available():
        yield Device("mps", "Apple GPU", _tried("mps"))


def _tried(device: str) -> str | None:
    """Run a small convolution on a device and compare it with the same one on the CPU."""
    import torch

    image, kernel = torch.arange(48.0).reshape(1, 3, 4, 4), torch.arange(54.0).reshape(2, 3, 3, 3) / 54
    try:
        found = torch.nn.functional.conv2d(image.to(device), kernel.to(device)).cpu()
    except Exception as error:  # noqa: BLE001  whatever a driver raises is the finding
        return f"a small convolution fails: {type(error).__name__}: {error}"
    if not torch.allclose(found, torch.nn.functional.conv2d(image, kernel), rtol=1e-2):
        return "a small convolution gives another result than on the CPU"
    return None
