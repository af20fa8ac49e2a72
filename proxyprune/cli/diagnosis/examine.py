"""Examine what is installed, what works, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from proxyprune.cli.diagnosis.diagnosis import DataSet, Device, Diagnosis, Package, TimeTable
from proxyprune.scoring.registry import scorers

DISTRIBUTION = "proxyprune"
GATHERING_EXTRAS = ("all",)
"""Extras that only name other extras."""

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "PROXYPRUNE_LLM_API_KEY")
"""Environment variables that scorers read; a diagnosis says whether they are set and never what they hold."""


def examine(data_sets: tuple[DataSet, ...] = ()) -> Diagnosis:
    """Look at this environment. Nothing is sent anywhere, and no key is read beyond whether it is there.

    Packages are looked up in their metadata. Of the heavy ones only torch is imported, because a device is tried with it. If torch does
    not work, that is the finding, and scorers are not tried.

    Args:
        data_sets: What `proxyprune.cli.diagnosis.data_sets` found of them.
    """
    from proxyprune import __version__

    packages, broken = tuple(_packages()), _torch_problem()
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} ({sys.implementation.name})",
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=os.cpu_count() or 1,
        packages=packages,
        devices=tuple(_devices()) if broken is None else (Device("cpu", "", broken),),
        scorers=tuple((info.name, info.origin, info.error) for info in scorers()) if broken is None else (),
        keys={name: bool(os.environ.get(name)) for name in KEYS},
        data_sets=data_sets,
        time_tables=tuple(_time_tables()),
    )


def _time_tables() -> Iterator[TimeTable]:
    """Yield the cost tables in the cache folder; nothing is measured."""
    from proxyprune.measuring.table_file import read_table, times_folder

    for path in sorted(times_folder().glob("*.json")):
        content = read_table(path)
        if content is not None:
            named = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
            yield TimeTable(str(path), named, len(content["nanoseconds"]), len(content["networks"]))


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


def _torch_problem() -> str | None:
    """Import torch; return what is wrong with it, or None."""
    try:
        import torch  # noqa: F401  only tried
    except Exception as error:  # noqa: BLE001  a broken installation raises anything, such as OSError for a missing library
        again = "pip install torch" if isinstance(error, ModuleNotFoundError) else "pip install --force-reinstall torch"
        return f"torch cannot be imported ({type(error).__name__}: {error}). Scorers were not tried. Run: {again}"
    return None


def _devices() -> Iterator[Device]:
    import torch

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
        return "a small convolution gives a different result from the CPU"
    return None
