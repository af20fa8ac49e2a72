"""A request, as the fake server saw it, and the plainest valid answer to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_LINE = re.compile(r"^(?P<label>[bs]\d+) at (?P<place>\d+)/(?P<count>\d+)\b", re.MULTILINE)


@dataclass(frozen=True)
class ReceivedRequest:
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


Answer = Callable[[ReceivedRequest], str]


def by_place(asked: ReceivedRequest) -> str:
    """Return a valid answer that depends on the place in the network alone, so that all samples agree."""
    return json.dumps({"scores": {label: 7 * place % 11 for label, place in asked.places.items()}})
