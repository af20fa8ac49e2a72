"""The binary version of CIFAR-10, read from its archive or from the folder that it unpacks to."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxyprune.errors import DataError

Bytes = NDArray[np.uint8]
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image and its label."""


def cifar_records(place: Path, names: Sequence[str]) -> Bytes:
    """Read files of records: one byte with the label, then 32 x 32 bytes of each colour.

    Args:
        place: The archive, or a folder that holds the files at any depth.
        names: Files to read, one after the other.

    Returns:
        Records [images, 3073].

    Raises:
        DataError: If a file is missing or is something else.
    """
    parts = []
    for name in names:
        try:
            raw = _member(place, name)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{place} cannot be read ({type(error).__name__}: {error}). Download it again.") from error
        if raw is None:
            raise DataError(
                f"{place} lacks {name}. It belongs to the binary version of CIFAR-10. The Python version holds pickles, which are not read."
            )
        if not raw or len(raw) % RECORD:
            raise DataError(f"{name} in {place} should hold records of {RECORD:,} bytes, but holds {len(raw):,} bytes in all.")
        found = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
        if found[:, 0].max() > 9:
            raise DataError(f"{name} in {place} has the label {found[:, 0].max()}; CIFAR-10 has 0 to 9. Is it CIFAR-100?")
        parts.append(found)
    return np.concatenate(parts)


def _member(place: Path, name: str) -> bytes | None:
    """Bytes of a file by its name, wherever it lies in a folder or an archive; None if it is not there."""
    if place.is_dir():
        path = next(iter(sorted(place.rglob(name))), None)
        return None if path is None else path.read_bytes()
    with tarfile.open(place) as archive:
        entry = next((entry for entry in archive if entry.isfile() and Path(entry.name).name == name), None)
        file = None if entry is None else archive.extractfile(entry)
        return None if file is None else file.read()
