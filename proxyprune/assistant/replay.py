"""A recorded session, answered without a model: the same calls in the same order get the same answers, byte for byte."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxyprune.assistant.answer import Answer, bounded, cleaned
from proxyprune.assistant.bounds import Bounds
from proxyprune.assistant.folder import recorded_calls
from proxyprune.assistant.session import arguments_digest, arguments_text, error_content
from proxyprune.errors import InputError, ReplayMismatchError


class Replay:
    """Answers the calls of a recorded session.

    A call that differs from the recording is answered with an error that names the recorded one, and the replay stays where it is.

    Args:
        folder: The session's folder.

    Raises:
        StorageError: If it holds no session.
        JournalError: If the log is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.calls: tuple[Mapping[str, Any], ...] = recorded_calls(folder)
        self._next = 0
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Recorded calls that were not replayed yet."""
        return len(self.calls) - self._next

    def call(self, tool: str, arguments: Any = None) -> Answer:
        """Answer one call from the recording."""
        with self._lock:
            if not self.left:
                return _failed(f"The recording has {len(self.calls)} calls, and all were replayed.")
            recorded = self.calls[self._next]
            if recorded["digest"] != arguments_digest(tool, arguments):
                wanted = f"{recorded['tool']}({_short(recorded['arguments'])})"
                return _failed(f"Call {self._next + 1} of the recording is {wanted}, found {tool[:80]}({_short(arguments)}).")
            self._next += 1
            return Answer(recorded["answer"], recorded["is_error"])


def _short(arguments: Any) -> str:
    try:
        text = arguments_text(arguments)
    except InputError:
        return "no JSON"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _failed(message: str) -> Answer:
    return Answer(bounded(cleaned(error_content(ReplayMismatchError(message))), Bounds.answer_chars), is_error=True)
