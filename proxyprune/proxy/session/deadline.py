"""The time to wait for a service: one deadline over everything, a limit for each request, and repetitions of what may pass.

The SDKs' own timeouts start anew with every byte and every retry, and one sleeps for as long as the server asks. So each request runs
in a thread that can be left behind, and all waiting is done here.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from proxyprune.errors import LLMError, LLMTimeoutError
from proxyprune.proxy.session.settings import LLMSettings

_Result = TypeVar("_Result")

_SLICE_SECONDS = 0.05
_LONGEST_BACKOFF_SECONDS = 30.0


@dataclass
class Deadline:
    """The end of all patience for one ranking, and the way to end it early.

    Attributes:
        seconds: How long the ranking may take.
        cause: Why it was ended early, or None.
    """

    seconds: float
    cause: BaseException | None = None
    _started: float = field(default_factory=time.monotonic)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def remaining(self) -> float:
        """Seconds left; 0 when there are none."""
        return 0.0 if self._ended.is_set() else max(0.0, self._started + self.seconds - time.monotonic())

    def end(self, cause: BaseException | None = None) -> None:
        """Let everything that waits give up; the first cause is kept."""
        with self._lock:
            if self.cause is None:
                self.cause = cause
        self._ended.set()

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        self._ended.wait(min(seconds, self.remaining))

    def exceeded(self) -> LLMError:
        """Return the error for what is not finished in time, or the one that ended everything early."""
        if isinstance(self.cause, LLMError):
            return self.cause
        return LLMTimeoutError(
            f"The ranking was not finished in {self.seconds:g} s. Raise deadline_seconds; what was answered is recorded."
        )


@dataclass
class _Outcome(Generic[_Result]):
    """The outcome of a thread."""

    done: threading.Event = field(default_factory=threading.Event)
    value: _Result | None = None
    error: BaseException | None = None


def within(seconds: float, deadline: Deadline, call: Callable[[], _Result], late: Callable[[], LLMError]) -> _Result:
    """Run `call` in a thread and wait for it; past the limit it is left to itself.

    Args:
        seconds: Limit for this call.
        deadline: Limit for everything.
        call: Raises LLMError or returns.
        late: Makes the error for a call that took too long.
    """
    outcome: _Outcome[_Result] = _Outcome()

    def work() -> None:
        try:
            outcome.value = call()
        except BaseException as error:  # noqa: BLE001  carried over to the thread that waits
            outcome.error = error
        outcome.done.set()

    threading.Thread(target=work, daemon=True, name="proxyprune-llm").start()
    limit = time.monotonic() + seconds
    while not outcome.done.wait(min(_SLICE_SECONDS, max(0.0, limit - time.monotonic()))):
        if deadline.remaining <= 0.0:
            raise deadline.exceeded()
        if time.monotonic() >= limit:
            raise late()
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]  # set, because there is no error


def persist(
    settings: LLMSettings,
    deadline: Deadline,
    call: Callable[[float], _Result],
    late: Callable[[float], LLMError],
    seed: int,
    failed: Callable[[int, LLMError], None],
) -> _Result:
    """Make a request, and repeat it while it fails for a passing reason.

    Args:
        settings: Limits and waits.
        deadline: Limit for everything.
        call: Makes the request; takes its limit in seconds.
        late: Makes the error for a request over its limit, which it takes.
        seed: For the jitter of the waits.
        failed: Told of every failure, with the number of the try, from 0.

    Raises:
        LLMError: The last failure.
    """
    jitter = random.Random(seed)
    for tries in range(settings.retries + 1):
        seconds = min(settings.timeout_seconds, deadline.remaining)
        if seconds <= 0.0:
            raise deadline.exceeded()
        try:
            return within(seconds, deadline, lambda seconds=seconds: call(seconds), lambda seconds=seconds: late(seconds))  # type: ignore[misc]
        except LLMError as error:
            failure = error
        failed(tries, failure)
        pause = _pause(settings, failure, tries, jitter)
        if not failure.retryable or tries == settings.retries or pause > settings.max_retry_after_seconds or pause >= deadline.remaining:
            break
        deadline.sleep(pause)
    raise failure


def _pause(settings: LLMSettings, failure: LLMError, tries: int, jitter: random.Random) -> float:
    if failure.retry_after is not None:
        return failure.retry_after
    longest = min(_LONGEST_BACKOFF_SECONDS, settings.max_retry_after_seconds)
    return min(longest, settings.backoff_seconds * 2.0**tries * jitter.uniform(1.0, 1.25))
