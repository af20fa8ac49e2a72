"""Append-only files of JSON lines that survive a kill: what was written is kept, half a last line is taken off, nothing is rewritten.

The first line is the header: what the file belongs to. Opening it with another header raises an error that names the difference.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from proxyprune.errors import JournalError, StorageError
from proxyprune.support.checks import listed

SCHEMA = 1


@dataclass(frozen=True)
class Journal:
    """An open journal; use `opened`.

    Attributes:
        path: The file.
        entries: What was in it when it was opened, oldest first, without the header.
        repaired_bytes: Length of the half line that was taken off its end; 0 as a rule.
    """

    path: Path
    entries: tuple[Mapping[str, Any], ...]
    repaired_bytes: int
    _file: IO[bytes] = field(repr=False, compare=False)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line and wait until it has reached the disk.

        Raises:
            StorageError: If it cannot be written.
        """
        _write_line(self._file, entry, self.path)


@contextlib.contextmanager
def opened(path: str | Path, kind: str, header: Mapping[str, Any], *, resume: bool) -> Iterator[Journal]:
    """Open a journal for one process.

    Args:
        path: The file; made when it is missing.
        kind: What sort of journal it is, such as "search".
        header: What it belongs to, as plain JSON values; compared with the file's.
        resume: Whether a file with entries may be continued.

    Raises:
        JournalError: If the file belongs to something else, has entries and is not to be resumed, or is damaged before its last line.
        StorageError: If it cannot be read or written, or another process has it open.
    """
    path = Path(path)
    first = {"schema": SCHEMA, "kind": kind, **json.loads(json.dumps(header))}
    try:
        file = path.open("a+b")
    except OSError as error:
        raise StorageError(
            f"The journal '{path}' cannot be opened: {error.strerror}. Choose a file in a folder that can be written."
        ) from error
    with file:
        _lock(file, path)
        lines, repaired = _whole_lines(file, path)
        if not lines:
            _write_line(file, first, path)
        else:
            _check_header(lines[0], first, path)
        entries = tuple(lines[1:])
        if entries and not resume:
            raise JournalError(
                f"'{path}' already holds {len(entries)} entries of a {kind}. Resume it, or choose another file; nothing was changed."
            )
        yield Journal(path, entries, repaired, file)


def _whole_lines(file: IO[bytes], path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines that parse, after taking half a line off the end."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    lines: list[dict[str, Any]] = []
    texts = whole.splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(texts):  # a kill between the sectors of the last write
                whole = whole[: len(whole) - len(text) - 1]
                break
            raise JournalError(
                f"Line {number} of '{path}' is not JSON ({error}), and lines follow it: the file was edited or damaged. "
                "Restore it, or start with another file."
            ) from error
        if not isinstance(line, dict):
            raise JournalError(
                f"Line {number} of '{path}' is {type(line).__name__}, expected an object. This is not a journal of proxyprune."
            )
        lines.append(line)
    if len(whole) < len(content):
        file.truncate(len(whole))
        file.flush()
        os.fsync(file.fileno())
    return lines, len(content) - len(whole)


def _check_header(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    if found.get("schema") != SCHEMA or found.get("kind") != wanted["kind"]:
        raise JournalError(
            f"'{path}' is not a journal of a {wanted['kind']} (schema {SCHEMA}): it begins with kind {found.get('kind')!r}, schema "
            f"{found.get('schema')!r}. Choose another file."
        )
    keys = dict.fromkeys([*wanted, *found])
    differences = [
        f"{key} was {_short(found.get(key))}, now {_short(wanted.get(key))}"
        for key in keys
        if _value(found.get(key)) != _value(wanted.get(key))
    ]
    if differences:
        raise JournalError(
            f"'{path}' belongs to another {wanted['kind']}: {listed(differences, separator='; ')}. Its measurements are not valid here. "
            "Use the settings that it was made with, or another file."
        )


def _value(value: Any) -> Any:
    """Return a value of a header; none at all and an empty object are the same."""
    return None if value == {} else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}…"


def _write_line(file: IO[bytes], entry: Mapping[str, Any], path: Path) -> None:
    try:
        file.write((json.dumps(entry, allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"The journal '{path}' cannot be written: {error.strerror}. Free some space and resume.") from error


def _lock(file: IO[bytes], path: Path) -> None:
    """One process at a time, where the system can tell (not on Windows); the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(f"The journal '{path}' is in use by another process. Wait for it to end, or choose another file.") from error
