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
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from proxyprune.testing.fake_llm.envelopes import PROTOCOLS
from proxyprune.testing.fake_llm.faults import Action, Exchange, Says, Status
from proxyprune.testing.fake_llm.received_request import Answer, ReceivedRequest, by_place


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
        self.requests: list[ReceivedRequest] = []
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
        """Return the `base_url` for one of the scorers "openai", "anthropic" and "local"."""
        return self.url if scorer == "anthropic" else self.openai_url

    def _action(self, asked: ReceivedRequest) -> Action:
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
                asked = ReceivedRequest(envelope.protocol, {name.lower(): value for name, value in self.headers.items()}, body)
                with contextlib.suppress(OSError):  # the other side may have given up
                    outer._action(asked).act(Exchange(asked, envelope, outer.answer, self))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def _understood(asked: ReceivedRequest, formats: frozenset[str]) -> bool:
    wanted = asked.body.get("response_format") if asked.protocol == "chat" else None
    if not wanted:
        return True
    name = "json_object with schema" if wanted["type"] == "json_object" and "schema" in wanted else str(wanted["type"])
    return name in formats
