"""A language model service that is none: a real HTTP server on this machine that speaks three protocols and fails on request.

    from proxyprune.testing import FakeLLMServer, Status

    with FakeLLMServer([Status(429, retry_after="1")]) as server:  # first this, then valid answers
        ranking = pp.score(graph, "openai", options={"model": "fake", "base_url": server.openai_url})
    server.requests[0].headers["authorization"]

It knows the OpenAI Responses API, OpenAI chat completions and the Anthropic Messages API. Replies are handed out in the order in which
requests come in; when none is left, `answer` is asked.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Protocol

from proxyprune.testing.envelopes import PROTOCOLS, Envelope

_LINE = re.compile(r"^(?P<label>[bs]\d+) at (?P<place>\d+)/(?P<count>\d+)\b", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """One request, as the server saw it.

    Attributes:
        protocol: "responses", "chat" or "messages".
        headers: With lower-case names.
        body: The parsed body.
    """

    protocol: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The conversation, system message left out."""
        found = self.body["input" if self.protocol == "responses" else "messages"]
        return [turn for turn in found if turn["role"] != "system"]

    @property
    def prompt(self) -> str:
        """The question: the first user message."""
        return str(self.turns[0]["content"])

    @property
    def places(self) -> dict[str, int]:
        """Place in the order of execution, from 1, of each label of the list; in the order of the list."""
        listed = self.prompt[self.prompt.rindex("# List of ") :]
        return {match["label"]: int(match["place"]) for match in _LINE.finditer(listed)}


Answer = Callable[[Asked], str]


def by_place(asked: Asked) -> str:
    """A valid answer that depends on the place in the network alone, so that all samples agree."""
    return json.dumps({"scores": {label: 7 * place % 11 for label, place in asked.places.items()}})


class Action(Protocol):
    """What the server does with one request."""

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

    asked: Asked
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
    message: str = "the fake server was told to fail"
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


class FakeLLMServer:
    """A server on a free port of this machine; a context manager.

    Args:
        replies: Handed out one by one, to whichever request comes next.
        answer: Makes the text of the answer when no reply is left.
        formats: Response formats that chat completions understand: "json_schema", "json_object with schema", "json_object". A request with
            another one is answered with HTTP 500, as llama.cpp's Python server does.

    Attributes:
        requests: All requests so far.
    """

    def __init__(
        self,
        replies: Iterable[Action] = (),
        answer: Answer = by_place,
        formats: frozenset[str] = frozenset({"json_schema", "json_object with schema", "json_object"}),
    ) -> None:
        self.requests: list[Asked] = []
        self.answer = answer
        self.formats = formats
        self._replies = list(replies)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler_class())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FakeLLMServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Address without a path, as the Anthropic SDK wants it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """Address with /v1, as the OpenAI SDK wants it."""
        return f"{self.url}/v1"

    def url_for(self, scorer: str) -> str:
        """The `base_url` for one of the scorers "openai", "anthropic" and "local"."""
        return self.url if scorer == "anthropic" else self.openai_url

    def _action(self, asked: Asked) -> Action:
        with self._lock:
            self.requests.append(asked)
            if not _understood(asked, self.formats):
                return Status(500, "body.response_format: Input should be 'text' or 'json_object'")
            return self._replies.pop(0) if self._replies else Says(self.answer)

    def _handler_class(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """Finds the protocol by the path."""

            def do_POST(self) -> None:
                """Read the request and do what is next."""
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
                envelope = next((envelope for path, envelope in PROTOCOLS.items() if self.path.endswith(path)), None)
                if envelope is None:
                    self.send_error(404)
                    return
                asked = Asked(envelope.protocol, {name.lower(): value for name, value in self.headers.items()}, body)
                with contextlib.suppress(OSError):  # the other side may have given up
                    outer._action(asked).act(Exchange(asked, envelope, outer.answer, self))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def _understood(asked: Asked, formats: frozenset[str]) -> bool:
    wanted = asked.body.get("response_format") if asked.protocol == "chat" else None
    if not wanted:
        return True
    name = "json_object with schema" if wanted["type"] == "json_object" and "schema" in wanted else str(wanted["type"])
    return name in formats
