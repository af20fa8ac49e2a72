"""A session: tool calls on one task, each of them in the log before it is answered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxyprune.assistant.answer import Answer, bounded, cleaned
from proxyprune.assistant.bounds import Bounds, Deadline
from proxyprune.assistant.context import CallContext
from proxyprune.assistant.folder import KIND, SessionFolder
from proxyprune.assistant.state import BASE, State
from proxyprune.assistant.task import PruningTask
from proxyprune.assistant.tool_table import tool_named
from proxyprune.assistant.treatment import Treatment
from proxyprune.errors import CallLimitError, InputError, JournalError, ProxyPruneError, ScoringError
from proxyprune.measuring.journal import Journal, opened
from proxyprune.planning.planner import plan_for

_ALWAYS = "history"
"""The tool that is answered after the last call, so that an assistant can see what it has."""


class Session:
    """Answers tool calls on one task, one at a time; made by `open`."""

    def __init__(self, task: PruningTask, bounds: Bounds, state: State, journal: Journal, calls: int) -> None:
        self.task = task
        self.bounds = bounds
        self._state = state
        self._journal = journal
        self._calls = calls
        self._lock = threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def open(cls, task: PruningTask, workspace: str | Path, bounds: Bounds | None = None) -> Iterator[Session]:
        """Open a session in a folder, or go on with the one that is there.

        A new session scores and plans once with the task's standard scorer: ranking "r0" and plan "p0".

        Args:
            task: The network, the goal and the data.
            workspace: The one folder that the session writes to; made if it is missing.
            bounds: Limits; they hold for the session as a whole, over several openings.

        Raises:
            StorageError: If the folder cannot be used, or another process has the session open.
            JournalError: If the folder holds the session of another task, or a damaged one.
            ProxyPruneError: If the one-shot plan cannot be made.
        """
        folder = SessionFolder.at(workspace)
        with opened(folder.log, KIND, cleaned(task.identity()), resume=True) as journal:
            state = State(folder)
            calls = _repeat(journal, state)
            if not journal.entries:
                _begin(task, bounds or Bounds(), state)
                journal.append({"what": "opening", "events": state.taken_events()})
            yield cls(task, bounds or Bounds(), state, journal, calls)

    @property
    def calls(self) -> int:
        """Calls that were answered, earlier openings included."""
        return self._calls

    def call(self, tool: str, arguments: Any = None) -> Answer:
        """Answer one tool call and log it. An error of proxyprune is an answer too; any other error is logged and raised."""
        with self._lock:
            started = time.monotonic()
            self._calls += 1
            try:
                content, is_error = self._content(tool, arguments), False
            except ProxyPruneError as error:
                content, is_error = error_content(error), True
            except Exception as error:  # a defect is logged as the answer that the client receives, and raised
                self._log(tool, arguments, Answer(self._text(error_content(error)), is_error=True), started)
                raise
            answer = Answer(self._text(content), is_error)
            self._log(tool, arguments, answer, started)
            return answer

    def _content(self, tool: str, arguments: Any) -> dict[str, Any]:
        known = tool_named(tool)
        if self._calls > self.bounds.calls and tool != _ALWAYS:
            raise CallLimitError(f"All {self.bounds.calls} calls of this session are used up. Only {_ALWAYS} is still answered.")
        length = len(arguments_text(arguments))
        if length > self.bounds.argument_chars:
            raise CallLimitError(f"The arguments have {length:,} characters, the limit is {self.bounds.argument_chars:,}.")
        deadline = Deadline.after(self.bounds.seconds_per_call)
        return known.answer(CallContext(self.task, self.bounds, self._state, deadline, self._calls), arguments)

    def _text(self, content: dict[str, Any]) -> str:
        return bounded(cleaned(content), self.bounds.answer_chars)

    def _log(self, tool: str, arguments: Any, answer: Answer, started: float) -> None:
        self._journal.append(
            {
                "what": "call",
                "tool": cleaned(tool[:200]),
                "arguments": _loggable(arguments, self.bounds.argument_chars),
                "digest": arguments_digest(tool, arguments),
                "answer": answer.text,
                "is_error": answer.is_error,
                "seconds": round(time.monotonic() - started, 4),
                "events": self._state.taken_events(),
            }
        )


def error_content(error: Exception) -> dict[str, Any]:
    """Return the object that stands for an error."""
    return {"error": type(error).__name__, "message": str(error)}


def arguments_text(arguments: Any) -> str:
    """Return arguments as canonical JSON.

    Raises:
        InputError: If they are no JSON values.
    """
    try:
        given = {} if arguments is None else arguments
        json.dumps(given, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return json.dumps(given, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The arguments must be JSON values ({error}).") from error


def arguments_digest(tool: str, arguments: Any) -> str:
    """Return a hash of a call, by which a replay recognises it."""
    try:
        text = arguments_text(arguments)
    except InputError:
        text = "no JSON"
    return hashlib.sha256(json.dumps([tool, text]).encode()).hexdigest()[:16]


def _loggable(arguments: Any, limit: int) -> Any:
    """Arguments without secrets; None if they are no JSON values or too long."""
    try:
        text = arguments_text(arguments)
    except InputError:
        return None
    return cleaned(json.loads(text)) if len(text) <= limit else None


def _begin(task: PruningTask, bounds: Bounds, state: State) -> None:
    """Make the one-shot ranking and plan, and measure the unpruned network."""
    deadline = Deadline.after(bounds.seconds_per_call)
    ranking = state.new_ranking(task.ranked(task.start, deadline))
    state.new_plan(plan_for(task.graph, state.rankings[ranking], task.goal, model=task.model), ranking)
    if task.data is None:
        return
    losses = task.batch_losses(task.model, deadline)
    if losses is None:
        raise ScoringError("The held-out loss of the unpruned model is not finite, so nothing can be compared with it. Look at the loss.")
    state.note_measured(BASE, Treatment().label, {"loss": statistics.fmean(losses)}, losses)


def _repeat(journal: Journal, state: State) -> int:
    """Take over what the log holds, and return the number of calls in it."""
    try:
        for entry in journal.entries:
            for event in entry["events"]:
                state.repeat(event)
        return sum(entry["what"] == "call" for entry in journal.entries)
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(
            f"The session '{journal.path}' is damaged ({type(error).__name__}: {error}). Choose another workspace."
        ) from error
