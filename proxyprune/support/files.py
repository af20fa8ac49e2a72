"""Writing a file or a folder as a whole or not at all: beside its place, to the disk, and there by one rename. Needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from proxyprune.errors import StorageError


def write_text(path: str | Path, text: str, *, advice: str = "Check the free space and permissions.") -> None:
    """Write text; a reader sees the old file or the new one. Folders above it are made.

    Args:
        path: The file.
        text: Its whole content; lines end in a line feed on every system.
        advice: The last sentence of the error.

    Raises:
        StorageError: If that fails.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".saving", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror or error}. {advice}") from error


def write_named(path: str | Path, text: str) -> None:
    """Write text to a file that a user named, whose folder has to be there: a mistyped one is not made.

    Raises:
        StorageError: If it is not there, or the file cannot be written.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise StorageError(f"Cannot write '{path}': there is no folder '{folder}'. Create it, or choose another place.")
    write_text(path, text, advice="Choose a writable place.")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON as `write_text` does.

    Raises:
        StorageError: If that fails.
    """
    write_text(path, json.dumps(dict(content), indent=1, allow_nan=False) + "\n")


def put_folder(fresh: Path, target: Path, *, foreign: Callable[[Path], Iterable[Path]] = lambda _: ()) -> None:
    """Put a folder in the place of another; on failure the other is what it was.

    Args:
        fresh: A complete folder beside the target.
        target: Where it goes; may be missing.
        foreign: Of the old folder, what moves over to the new one.

    Raises:
        OSError: If a rename fails.
    """
    fresh.chmod(0o777 & ~_umask())
    if not target.exists():
        fresh.rename(target)
        to_disk(target.parent)
        return
    kept = fresh.with_suffix(".previous")
    target.rename(kept)
    try:
        fresh.rename(target)
    except OSError:
        kept.rename(target)
        raise
    for extra in foreign(kept):
        extra.rename(target / extra.name)
    shutil.rmtree(kept, ignore_errors=True)
    to_disk(target.parent)


def to_disk(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
