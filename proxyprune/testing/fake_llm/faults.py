"""The fake server's treatment of a request: answer it, or fail in one of the ways that were seen in the wild."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

from proxyprune.testing.fake_llm.envelopes import Envelope
from proxyprune.testing.fake_llm.received_request import Answer, ReceivedRequest


class Action(Protocol):
    """The server's treatment of one request."""

    def act(self, exchange: Exchange) -> None:
        """Write to the connection, or do not."""
        ...


@dataclass(frozen=True)
class Exchange:
    """One request and the means to reply.

    Attributes:
        asked: The request.
        envelope: Puts text into the protocol's reply.
        answer: The server's own answers.
        handler: The connection.
    """

    asked: ReceivedRequest
    envelope: Envelope
    answer: Answer
    handler: BaseHTTPRequestHandler

    def send(
        self,
        body: bytes,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Write a whole reply; `length` other than the true one cuts it off."""
        self.handler.send_response(status)
        for name, value in {
            "content-type": kind,
            "content-length": str(len(body) if length is None else length),
            "request-id": "fake-1",
            "x-request-id": "fake-1",
            **(headers or {}),
        }.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def send_json(self, body: Mapping[str, Any], **options: Any) -> None:
        """Write JSON."""
        self.send(json.dumps(body).encode(), **options)


@dataclass(frozen=True)
class Says:
    """Replies with this text, or with what a function makes of the request."""

    text: str | Answer

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        text = self.text if isinstance(self.text, str) else self.text(exchange.asked)
        exchange.send_json(exchange.envelope.complete(exchange.asked.body, text))


@dataclass(frozen=True)
class CutPrompt:
    """Replies validly, after cutting the prompt to so many tokens, which the reply reports.

    Attributes:
        tokens: Context length.
        text: The reply, or None for the server's own.
    """

    tokens: int
    text: str | None = None

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        text = exchange.answer(exchange.asked) if self.text is None else self.text
        whole = exchange.envelope.complete(exchange.asked.body, text)
        name = "prompt_tokens" if "prompt_tokens" in whole["usage"] else "input_tokens"
        exchange.send_json(whole | {"usage": {name: self.tokens, "output_tokens": 20, "completion_tokens": 20}})


@dataclass(frozen=True)
class Status:
    """Replies with an HTTP error.

    Attributes:
        code: HTTP status.
        message: The service's words.
        retry_after: Header, or None.
        error_code: The service's own code, or "".
        headers: Further headers.
    """

    code: int
    message: str = "the fake server fails by request"
    retry_after: str | None = None
    error_code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        headers = dict(self.headers) | ({} if self.retry_after is None else {"retry-after": self.retry_after})
        body = {"type": "error", "error": {"message": self.message, "type": "fake_error", "code": self.error_code or None}}
        exchange.send_json(body, status=self.code, headers=headers)


@dataclass(frozen=True)
class Slow:
    """Replies validly, but late."""

    seconds: float

    def act(self, exchange: Exchange) -> None:
        """Wait, then reply."""
        time.sleep(self.seconds)
        Says(exchange.answer).act(exchange)


@dataclass(frozen=True)
class Dribble:
    """Sends a space now and then, so that no read ever times out, and never comes to the point."""

    seconds: float

    def act(self, exchange: Exchange) -> None:
        """Reply without end."""
        exchange.send(b"", length=1_000_000)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            exchange.handler.wfile.write(b" ")
            exchange.handler.wfile.flush()
            time.sleep(0.02)


@dataclass(frozen=True)
class Drop:
    """Closes the connection without a word."""

    def act(self, exchange: Exchange) -> None:
        """Reset the connection."""
        exchange.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.handler.connection.close()


@dataclass(frozen=True)
class CutOff:
    """Sends half of a valid reply.

    Attributes:
        announced: Whether the header still announces the whole length.
    """

    announced: bool = False

    def act(self, exchange: Exchange) -> None:
        """Reply by half."""
        body = json.dumps(exchange.envelope.complete(exchange.asked.body, exchange.answer(exchange.asked))).encode()
        exchange.send(body[: len(body) // 2], length=len(body) if self.announced else None)


@dataclass(frozen=True)
class Html:
    """Sends a web page, as a captive portal does."""

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        exchange.send(b"<!doctype html><title>Log in</title><p>Please log in to this network.", kind="text/html")


@dataclass(frozen=True)
class Empty:
    """Sends an empty JSON object."""

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        exchange.send_json({})


@dataclass(frozen=True)
class Refusal:
    """The model declines, in the way of the protocol."""

    explanation: str = "I cannot help with that."

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        exchange.send_json(exchange.envelope.refused(exchange.asked.body, self.explanation))


@dataclass(frozen=True)
class Truncated:
    """The answer stops at its limit of tokens."""

    def act(self, exchange: Exchange) -> None:
        """Reply."""
        text = exchange.answer(exchange.asked)
        exchange.send_json(exchange.envelope.truncated(exchange.asked.body, text[: len(text) // 2]))
