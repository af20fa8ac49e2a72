"""Requests to a language model and its replies, whatever the service: the values that every provider reads and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from proxyprune.support.checks import is_count
from proxyprune.support.dataclass_json import to_plain


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, or of several.

    Attributes:
        input_tokens: Of the prompts, those read from the service's cache included.
        output_tokens: Of the answers, reasoning included.
        cached_tokens: Part of `input_tokens` that came from the service's cache.
        reasoning_tokens: Part of `output_tokens` that was spent on reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))

    def to_dict(self) -> dict[str, int]:
        """Plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Usage:
        """Read what `to_dict` wrote; what is missing or no count is 0."""
        return cls(*(_count(data.get(entry.name)) for entry in fields(cls)))


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; role "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Request:
    """One question for a score map.

    Attributes:
        model: Name of the model, as the service knows it.
        system: The part that never changes.
        turns: The question; after an invalid answer also that answer and what is wrong with it.
        schema: JSON schema of the answer.
        max_output_tokens: Largest length of an answer in tokens, reasoning included.
        temperature: None leaves it to the service.
    """

    model: str
    system: str
    turns: tuple[Turn, ...]
    schema: Mapping[str, Any] = field(repr=False)
    max_output_tokens: int
    temperature: float | None = None

    @property
    def characters(self) -> int:
        """Length of everything that is sent, the schema aside."""
        return len(self.system) + sum(len(turn.text) for turn in self.turns)


@dataclass(frozen=True)
class Reply:
    """A complete answer.

    Attributes:
        text: What the model wrote.
        usage: Tokens, as the service counts them.
        model: Name of the model that the service says it used, or "".
        request_id: The service's own id of the exchange, or "".
        free_form: Whether the server understood no response format, so that nothing binds the model to JSON.
    """

    text: str = field(repr=False)
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    request_id: str = ""
    free_form: bool = False


class Provider(Protocol):
    """Sends one request to a service, once, without retries of its own."""

    def send(self, request: Request, timeout_seconds: float) -> Reply:
        """Return a complete answer.

        Raises:
            LLMError: The right one for whatever went wrong; nothing else comes out.
        """
        ...

    def close(self) -> None:
        """Let go of connections; what is still running fails."""
        ...


def _count(value: object) -> int:
    return value if is_count(value) else 0
