"""Check that a network can be saved to a folder: before minutes are spent on it, and again when it is saved. Needs no torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from proxyprune.errors import StorageError
from proxyprune.saving.manifest import MANIFEST


def resolved(folder: str | Path) -> Path:
    """Return the real path, with ~ and links followed."""
    return Path(os.path.realpath(Path(folder).expanduser()))


def refuse_foreign(target: Path) -> None:
    """Refuse a file, and a folder with files of somebody else.

    Raises:
        StorageError: If it is one of these.
    """
    if target.exists() and not target.is_dir():
        raise StorageError(f"Cannot save to '{target}': it is a file. Choose a folder.")
    if target.is_dir() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise StorageError(f"Cannot save to '{target}': it holds files that proxyprune did not write. Choose a new or empty folder.")


def check_folder(folder: str | Path) -> None:
    """Try whether `proxyprune.save` could write here now; nothing is left behind.

    Raises:
        StorageError: If it could not.
    """
    target = resolved(folder)
    refuse_foreign(target)
    try:
        above = target.parent
        while not above.exists():
            above = above.parent
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=above):
            pass
    except OSError as error:
        raise StorageError(f"Cannot save to '{folder}': {error.strerror}. Check the path and its permissions.") from error
