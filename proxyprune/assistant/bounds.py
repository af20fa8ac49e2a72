"""Limits of a session: calls, measurements, networks, seconds and characters."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields

from proxyprune.errors import CallLimitError, InputError
from proxyprune.support.checks import is_count


@dataclass(frozen=True)
class Bounds:
    """Limits of one session.

    Attributes:
        calls: Tool calls that are answered.
        measurements: Networks that are built and measured.
        networks: Networks that are saved.
        seconds_per_call: Time after which a call stops; checked before each batch and each recovery step.
        answer_chars: Longest answer; longer lists and texts are shortened, and the answer says so.
        argument_chars: Longest arguments of one call, as JSON.

    Raises:
        InputError: If a limit is not positive.
    """

    calls: int = 1000
    measurements: int = 64
    networks: int = 8
    seconds_per_call: float = 300.0
    answer_chars: int = 40_000
    argument_chars: int = 100_000

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            whole = entry.name != "seconds_per_call"
            if not (is_count(value, 1) if whole else value > 0 and math.isfinite(value)):
                raise InputError(
                    f"Expected {entry.name} to be a {'whole number from 1 up' if whole else 'number above 0'}, found {value!r}."
                )
        if self.answer_chars < _SHORTEST_ANSWER:
            raise InputError(f"Expected answer_chars to be at least {_SHORTEST_ANSWER}, found {self.answer_chars}.")


_SHORTEST_ANSWER = 2000


@dataclass(frozen=True)
class Deadline:
    """The end of one call.

    Attributes:
        seconds: Time that the call has.
        started: Reading of the monotonic clock when it began.
    """

    seconds: float
    started: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return a deadline that many seconds from now."""
        return cls(seconds, time.monotonic())

    def check(self) -> None:
        """Raise if the time is over.

        Raises:
            CallLimitError: If it is.
        """
        if time.monotonic() - self.started > self.seconds:
            raise CallLimitError(
                f"The call took longer than its limit of {self.seconds:g} seconds and was stopped. "
                "Request less in one call, or start the server with a higher limit."
            )
