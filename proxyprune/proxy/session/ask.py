"""One question and its valid answer: from the cache, or from the service with one chance to mend it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Generic, TypeVar

from proxyprune.errors import LLMError, LLMInvalidAnswerError, LLMReplayMissError
from proxyprune.proxy.prompt.question import Question
from proxyprune.proxy.prompt.templates import VERSION
from proxyprune.proxy.prompt.token_count import was_cut
from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.exchange import Provider, Reply, Request, Turn, Usage
from proxyprune.proxy.service.failures import Service
from proxyprune.proxy.service.redact import redacted
from proxyprune.proxy.session.audit import Audit
from proxyprune.proxy.session.cache import Cache, digest
from proxyprune.proxy.session.deadline import Deadline, persist
from proxyprune.proxy.session.price import Account, output_limit
from proxyprune.proxy.session.settings import LLMSettings
from proxyprune.support.dataclass_json import to_plain
from proxyprune.support.seeds import derived_seed

Content = TypeVar("Content")
_Any = Question[object]


@dataclass(frozen=True)
class Answer(Generic[Content]):
    """A valid answer.

    Attributes:
        content: What the question reads from it: the score by block id or by stage, or advice.
        usage: Tokens, an invalid first answer included.
        replayed: Whether it came from the cache.
        cut: (characters sent, tokens reported) if the server cut the prompt, or None.
    """

    content: Content
    usage: Usage
    replayed: bool
    cut: tuple[int, int] | None = None


@dataclass
class Asker:
    """Asks the questions of one ranking; safe to use from several threads.

    Attributes:
        name: Registered name of the scorer.
        settings: Limits.
        endpoint: Where requests go.
        seed: Of the ranking.
        make_provider: Makes the client; called when the first question is not in the cache, and never when replaying.
        cache: Recorded answers.
        audit: Log of attempts.
        account: Money.
        deadline: Limit for everything.
    """

    name: str
    settings: LLMSettings
    endpoint: Endpoint
    seed: int
    make_provider: Callable[[], Provider]
    cache: Cache
    audit: Audit
    account: Account
    deadline: Deadline
    _provider: Provider | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def request(self, prompt: _Any) -> Request:
        """Return what is sent for a prompt."""
        return Request(
            model=self.settings.model,
            system=prompt.system,
            turns=(Turn("user", prompt.user),),
            schema=prompt.schema,
            max_output_tokens=output_limit(prompt, self.endpoint.hosted is not None, self.settings.max_output_tokens),
            temperature=self.settings.temperature,
        )

    def key(self, prompt: _Any, sample: int) -> str:
        """Name of the recorded answer: a hash of everything that the answer depends on, and of nothing else."""
        request = self.request(prompt)
        return digest(
            {
                "provider": self.name,
                "origin": self.endpoint.identity,
                "model": request.model,
                "wording": VERSION,
                "system": request.system,
                "user": prompt.user,
                "schema": request.schema,
                "max_output_tokens": request.max_output_tokens,
                "temperature": request.temperature,
                "seed": self.seed,
                "sample": sample,
                "part": prompt.part,
            }
        )

    def recorded(self, prompt: Question[Content], sample: int) -> Answer[Content] | None:
        """Return the answer in the cache, checked like a fresh one; None where there is none.

        Raises:
            LLMReplayMissError: When replaying, if there is none.
        """
        key = self.key(prompt, sample)
        content = self.cache.load("answers", key)
        if content is None:
            return None
        try:
            found = prompt.read(str(content.get("text")))
        except LLMInvalidAnswerError as error:  # recorded by a version with other rules
            problem = str(error)
        else:
            usage = Usage.from_dict(content.get("usage") or {})
            cut = self._cut(prompt, usage, requests=2 if content.get("asked_twice") else 1)
            return Answer(found, usage, replayed=True, cut=cut)
        if self.cache.replaying:
            raise LLMReplayMissError(
                f"The recorded answer {key} is no longer valid: {problem} Request it again with cache_mode='read-write'."
            )
        return None

    def ask(self, prompt: Question[Content], sample: int) -> Answer[Content]:
        """Return a valid answer.

        Raises:
            LLMInvalidAnswerError: If the second answer is invalid too.
            LLMError: If there is no answer.
        """
        if (found := self.recorded(prompt, sample)) is not None:
            self.audit.write("replayed", sample=sample, part=prompt.part, key=self.key(prompt, sample), content=_plain(found.content))
            return found
        request, started = self.request(prompt), time.monotonic()
        reply = self._send(request, prompt, sample)
        usage = reply.usage
        content, first = self._read(reply, prompt)
        if content is None:
            assert first is not None
            reply = self._send(self._again(request, reply, prompt, first.problems), prompt, sample)
            usage = usage + reply.usage
            content, second = self._read(reply, prompt)
            if content is None:
                assert second is not None
                raise self._no_answer(prompt, first, second, reply, self._cut(prompt, usage, requests=2))
        self._record(prompt, sample, reply, usage, mended=first is not None, seconds=time.monotonic() - started)
        return Answer(content, usage, replayed=False, cut=self._cut(prompt, usage, requests=1 if first is None else 2))

    def close(self) -> None:
        """Let go of the client."""
        if self._provider is not None:
            self._provider.close()

    def _again(self, request: Request, reply: Reply, prompt: _Any, problems: tuple[str, ...]) -> Request:
        again = Turn("user", prompt.again(problems))
        return replace(request, turns=(*request.turns, Turn("assistant", reply.text[:8000] or "(empty)"), again))

    @staticmethod
    def _read(reply: Reply, prompt: Question[Content]) -> tuple[Content | None, LLMInvalidAnswerError | None]:
        """Return the content of an answer, or what is wrong with it."""
        try:
            return prompt.read(reply.text), None
        except LLMInvalidAnswerError as error:
            return None, error

    def _cut(self, prompt: _Any, usage: Usage, *, requests: int) -> tuple[int, int] | None:
        """Characters sent at least, and tokens that the server reports for them, if these are too few; None otherwise."""
        characters = requests * self.request(prompt).characters
        return (characters, usage.input_tokens) if was_cut(characters, usage.input_tokens) else None

    def _no_answer(
        self, prompt: _Any, first: LLMInvalidAnswerError, second: LLMInvalidAnswerError, reply: Reply, cut: tuple[int, int] | None
    ) -> LLMInvalidAnswerError:
        """Two invalid answers, with the likely cause: a cut prompt, a server that does not enforce the format, or the model itself."""
        if cut is not None:
            advice = cut_prompt(*cut)
        elif second.is_json:
            advice = "Try a larger model."
        elif reply.free_form:
            advice = "The server understands no response format; use one that enforces a JSON schema, or a model that follows instructions."
        else:
            advice = "The server accepted the response format and did not enforce it; use one that enforces a JSON schema."
        return LLMInvalidAnswerError(
            f"{self._service} returned no valid {prompt.wanted}, even after a message with the errors. First: {' '.join(first.problems)} "
            f"Then: {' '.join(second.problems)} {advice}",
            problems=second.problems,
            is_json=second.is_json,
        )

    def _send(self, request: Request, prompt: _Any, sample: int) -> Reply:
        """Send with patience; every attempt is logged and paid for."""
        where = {"sample": sample, "part": prompt.part}

        def failed(tries: int, error: LLMError) -> None:
            self.account.charge_failure(request, error)
            self.audit.write("failed", **where, attempt=tries, error=type(error).__name__, message=str(error), **_sent(request))

        provider = self._connected()
        purpose = derived_seed(self.seed, "waits", sample, prompt.part)
        reply = persist(
            self.settings, self.deadline, lambda seconds: provider.send(request, seconds), self._service.timed_out, purpose, failed
        )
        self.account.charge(reply.usage)
        self.audit.write("answered", **where, **_sent(request), text=reply.text, usage=reply.usage.to_dict(), request_id=reply.request_id)
        whole = reply.text.encode("utf-8", "replace").decode()  # half a surrogate pair could be neither sent back nor stored
        return replace(reply, text=redacted(whole, self.endpoint.secrets()))

    def _connected(self) -> Provider:
        with self._lock:
            if self._provider is None:
                self._provider = self.make_provider()
            return self._provider

    @property
    def _service(self) -> Service:
        return Service(self.endpoint, self.settings.model)

    def _record(self, prompt: _Any, sample: int, reply: Reply, usage: Usage, *, mended: bool, seconds: float) -> None:
        self.cache.save(
            "answers",
            self.key(prompt, sample),
            {
                "provider": self.name,
                "origin": self.endpoint.identity,
                "model": self.settings.model,
                "served_model": redacted(reply.model, self.endpoint.secrets()),
                "request_id": redacted(reply.request_id, self.endpoint.secrets()),
                "wording": VERSION,
                "seed": self.seed,
                "sample": sample,
                "part": prompt.part,
                "labels": dict(prompt.labels.keys),
                "user": redacted(prompt.user, self.endpoint.secrets()),
                "text": reply.text,
                "free_form": reply.free_form,
                "asked_twice": mended,
                "usage": usage.to_dict(),
                "seconds": round(seconds, 3),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "sdk": _sdk_version(self.name),
            },
        )


def cut_prompt(characters: int, tokens: int) -> str:
    """Return the sentences about a server that cut the prompt."""
    return (
        f"The server reports {tokens:,} tokens for at least {characters:,} characters, so it cut the prompt before the model read it. "
        "Raise the server's context length (num_ctx in Ollama, --ctx-size in llama.cpp), or lower prompt_tokens."
    )


def _plain(content: object) -> object:
    """Content as plain JSON types, for the log."""
    return to_plain(content) if dataclasses.is_dataclass(content) else content


def _sent(request: Request) -> dict[str, Any]:
    return {
        "model": request.model,
        "turns": [{"role": turn.role, "text": turn.text} for turn in request.turns],
        "wording": VERSION,
        "max_output_tokens": request.max_output_tokens,
    }


def _sdk_version(name: str) -> str:
    distribution = "anthropic" if name == "anthropic" else "openai"
    try:
        return f"{distribution} {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return distribution
