"""Response formats from strict to none: the strictest that a server understands is found once and remembered for each address.

llama.cpp's Python server answers `json_schema` with HTTP 500 and takes `json_object` with a schema beside it; LM Studio takes only
`json_schema`; some take nothing. What a server claims to enforce is checked afterwards in any case.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyprune.proxy.service.failures import FailedStatus

_ABOUT_THE_FORMAT = re.compile(r"response_format|json_schema|json_object|json schema|grammar|guided|structured", re.IGNORECASE)
_NEVER_THE_FORMAT = frozenset({"context_length_exceeded", "model_not_found", "invalid_api_key", "insufficient_quota"})


@dataclass(frozen=True)
class ResponseFormat:
    """One way of asking for JSON."""

    name: str

    @property
    def free_form(self) -> bool:
        """True if prose around the answer must be expected."""
        return self.name == "prompt"

    def arguments(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to add to the request."""
        formats: dict[str, Any] = {
            "json_schema": {"type": "json_schema", "json_schema": {"name": "importance", "strict": True, "schema": dict(schema)}},
            "json_object with schema": {"type": "json_object", "schema": dict(schema)},
            "json_object": {"type": "json_object"},
        }
        return {} if self.free_form else {"response_format": formats[self.name]}


FORMATS = tuple(map(ResponseFormat, ("json_schema", "json_object with schema", "json_object", "prompt")))


@dataclass
class ResponseFormats:
    """The format that each address understands. While it is unknown, one request at a time finds it out."""

    _settled: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def known(self, url: str) -> ResponseFormat | None:
        """Return the format that an address is known to understand, or None."""
        place = self._settled.get(url)
        return None if place is None else FORMATS[place]

    @contextlib.contextmanager
    def negotiate(self, url: str) -> Iterator[Negotiation]:
        """Start from the format known for an address, or from the strictest."""
        if url not in self._settled:
            with self._lock:
                if url not in self._settled:
                    yield Negotiation(self._settled, url, 0)
                    return
        yield Negotiation(self._settled, url, self._settled[url])


@dataclass
class Negotiation:
    """The formats that one request tries."""

    settled: dict[str, int]
    url: str
    place: int

    @property
    def format(self) -> ResponseFormat:
        """The format to try now."""
        return FORMATS[self.place]

    def settle(self) -> None:
        """Remember that the server understood this format."""
        self.settled[self.url] = self.place

    def fall_back(self) -> bool:
        """Take the next looser format; return False when there is none."""
        self.place += 1
        return self.place < len(FORMATS)


def not_understood(answer: FailedStatus) -> bool:
    """Return True if a refused request may be one whose response format is unknown to the server."""
    if answer.code in _NEVER_THE_FORMAT:
        return False
    if answer.status in (400, 415, 422):
        return True
    return answer.status in (500, 501) and _ABOUT_THE_FORMAT.search(f"{answer.message} {answer.body}") is not None
