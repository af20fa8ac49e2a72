"""The context of one tool call."""

from __future__ import annotations

from dataclasses import dataclass

from proxyprune.assistant.bounds import Bounds, Deadline
from proxyprune.assistant.state import State
from proxyprune.assistant.task import PruningTask


@dataclass(frozen=True)
class CallContext:
    """The context of one tool call.

    Attributes:
        task: The network, the goal and the data.
        bounds: Limits of the session.
        state: What was found out so far.
        deadline: The end of this call.
        calls: Calls of the session so far, this one included.
    """

    task: PruningTask
    bounds: Bounds
    state: State
    deadline: Deadline
    calls: int
