"""One answer to a tool call: JSON text of bounded length, without secrets and without absolute paths."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from proxyprune.proxy.service.redact import redacted

_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|credential")
_SHORTEST_SECRET = 8
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:~-])(?:/|[A-Za-z]:[\\/])(?:[^\s/\\\"'<>|:*?]+[/\\])+(?=[^\s/\\])")
_SHORTENED = "shortened"


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: A JSON object in ASCII.
        is_error: Whether the call failed; the object then has the keys "error" (the kind) and "message".
    """

    text: str
    is_error: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """The object."""
        found: dict[str, Any] = json.loads(self.text)
        return found


class Caller(Protocol):
    """Answers tool calls: a session, or a replay of one."""

    def call(self, tool: str, arguments: Any = None) -> Answer:
        """Answer one call; an error is an answer too."""
        ...


def cleaned(value: Any) -> Any:
    """Return plain JSON values without secrets and with absolute paths shortened to file names.

    Secrets are the values of environment variables with a name such as OPENAI_API_KEY, and text that has the form of a key.
    """
    return _cleaned(value, _secrets())


def bounded(content: Mapping[str, Any], limit: int) -> str:
    """Return JSON text of at most `limit` characters.

    The longest list, object or text at the top is cut to its first half until the whole fits; the key "shortened" says what was cut.
    """
    shown = dict(content)
    cut: dict[str, str] = {}
    while len(text := json.dumps(shown | ({_SHORTENED: cut} if cut else {}), allow_nan=False)) > limit:
        lengths = {key: len(json.dumps(value)) for key, value in shown.items() if isinstance(value, dict | list | str) and len(value) > 0}
        longest = max(lengths, key=lambda key: lengths[key])
        shown[longest] = _first_half(shown[longest])
        cut[longest] = f"the first {len(shown[longest])} of {len(content[longest])}"
    return text


def _first_half(value: Any) -> Any:
    half = len(value) // 2
    return dict(list(value.items())[:half]) if isinstance(value, dict) else value[:half]


def _secrets() -> tuple[str, ...]:
    return tuple(value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET)


def _cleaned(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return _ABSOLUTE_PATH.sub("", redacted(value, secrets))
    if isinstance(value, Mapping):
        return {_cleaned(str(key), secrets): _cleaned(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item, secrets) for item in value]
    return value
