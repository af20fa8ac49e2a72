"""Recorded answers: one JSON file for each valid answer, found by a hash of everything that it depends on.

Beside the answers lies a run file for each ranking: which samples it rests on and which were dropped. A replay reads it, so a ranking is
reproduced byte for byte even if some answers were invalid or the money ran out when it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxyprune.errors import LLMReplayMissError
from proxyprune.support.files import write_text

SCHEMA = 1


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of recorded answers.

    Attributes:
        folder: Where they lie; None keeps nothing.
        mode: "read-write", "off" or "replay-only".
    """

    folder: Path | None
    mode: str

    @property
    def replaying(self) -> bool:
        """True if only recorded answers may be used."""
        return self.mode == "replay-only"

    @property
    def _open(self) -> Path | None:
        return None if self.mode == "off" else self.folder

    def load(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return a recorded value, or None where there is none.

        A file that is damaged (cut off, changed by hand, of another schema) counts as absent when answers can be asked for anew, and is
        then written again.

        Args:
            kind: "answers" or "runs".
            key: Digest of what the value depends on.

        Raises:
            LLMReplayMissError: When replaying, if there is no such file or it is damaged.
        """
        if self._open is None:
            return None
        path = self._path(self._open, kind, key)
        try:
            content = _checked(json.loads(path.read_text(encoding="utf-8")), key)
            problem = "is damaged: its content does not fit its hash"
        except FileNotFoundError:
            content, problem = None, "does not exist"
        except (OSError, ValueError, RecursionError) as error:
            content, problem = None, f"cannot be read ({type(error).__name__})"
        if content is None and self.replaying:
            raise LLMReplayMissError(
                f"A replay needs the recorded file {path}, which {problem}. Expected the folder that the ranking was made with, and the "
                "same network, model, seed and options; or request new answers with cache_mode read-write."
            )
        return content

    def save(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        """Record a value: all of it or nothing, also when the process is killed.

        Raises:
            StorageError: If the folder cannot be written.
        """
        if self._open is None or self.replaying:
            return
        whole = {"schema": SCHEMA, "key": key, **content}
        text = json.dumps({**whole, "sha256": digest(whole)}, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
        path = self._path(self._open, kind, key)
        write_text(path, text, advice="Choose a writable folder as cache.")

    @staticmethod
    def _path(folder: Path, kind: str, key: str) -> Path:
        return folder / kind / key[:2] / f"{key}.json"


def _checked(data: Any, key: str) -> dict[str, Any] | None:
    """Return the content of a file that is whole, unchanged and about the right thing."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("key") != key:
        return None
    content = {name: value for name, value in data.items() if name != "sha256"}
    return content if data.get("sha256") == digest(content) else None
