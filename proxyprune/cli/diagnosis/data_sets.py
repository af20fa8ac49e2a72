"""The named data sets that are on this machine, for `proxyprune doctor`."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from proxyprune.cli.diagnosis.diagnosis import DataSet
from proxyprune.diffusion.data.places import FASHION_PLACES
from proxyprune.support.extras import how_to_install

_FASHION_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def available() -> tuple[DataSet, ...]:
    """Look for the data sets that `--source` knows by name. Nothing is read but the names of files."""
    return (_digits(), fashion_mnist(FASHION_PLACES), _hub())


def _digits() -> DataSet:
    return _through("digits", "scikit-learn", str(how_to_install("sklearn")))


def _hub() -> DataSet:
    return _through("hub:NAME", "datasets", str(how_to_install("datasets")))


def _through(name: str, distribution: str, advice: str) -> DataSet:
    """Return a data set that comes through an installed distribution."""
    try:
        return DataSet(name, f"{distribution} {metadata.version(distribution)}", "")
    except metadata.PackageNotFoundError:
        return DataSet(name, None, advice)


def fashion_mnist(places: tuple[Path, ...]) -> DataSet:
    """Look for Debian's copy of Fashion-MNIST in several folders."""
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        advice = f"apt install dataset-fashion-mnist, or put the four idx files into {places[-1]}; use --data for another folder"
        return DataSet("fashion-mnist", None, advice)
    lacking = [name for name in _FASHION_FILES if not ((folder / name).is_file() or (folder / f"{name}.gz").is_file())]
    if lacking:
        return DataSet("fashion-mnist", None, f"{folder} lacks {', '.join(lacking)} (or with .gz); put all four there")
    return DataSet("fashion-mnist", str(folder), "")
