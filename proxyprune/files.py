"""Writing a file as a whole or not at all: beside its place, to the disk, and there by one rename. Needs no torch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
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
