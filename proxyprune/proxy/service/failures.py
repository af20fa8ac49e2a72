"""One place that says what a failed exchange means: from HTTP status, service code and message to our own error.

Foreign exceptions are never chained to ours: they hold the request, and with it the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyprune.errors import (
    LLMAuthError,
    LLMBudgetError,
    LLMError,
    LLMRateLimitError,
    LLMRefusalError,
    LLMTimeoutError,
    LLMTruncatedError,
    LLMUnavailableError,
)
from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.redact import redacted

_SHOWN = 300
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_error"})
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "request_too_large", "string_above_max_length"})


@dataclass(frozen=True)
class Service:
    """Whom an error is about.

    Attributes:
        endpoint: Where the request went.
        model: The model that was asked.
    """

    endpoint: Endpoint
    model: str

    def __str__(self) -> str:
        return f"{self.model} at {self.endpoint.url}"

    def clean(self, text: object) -> str:
        """Return a foreign message without secrets, on one line, cut to a sane length."""
        line = re.sub(r"\s+", " ", redacted(str(text), self.endpoint.secrets())).strip()
        return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."

    # What can go wrong, a method each

    def refused_status(self, answer: FailedStatus) -> LLMError:
        """Return the error for an HTTP status that is not 2xx."""
        shown = f"{self} answered with HTTP {answer.status}: {self.clean(answer.message)}"
        if answer.status in (401, 403):
            where = self.endpoint.hosted.key_variable if self.endpoint.hosted else "PROXYPRUNE_LLM_API_KEY"
            return LLMAuthError(f"{shown}. Check the key in {where} and what it may use.", status=answer.status)
        if answer.code in _TOO_LONG_CODES or answer.status == 413:
            return LLMBudgetError(f"{shown}. The prompt is too long for this model: lower prompt_tokens, so that it is asked in stages.")
        if answer.status == 402 or answer.code in _QUOTA_CODES:
            return LLMRateLimitError(f"{shown}. The account's quota is used up; waiting does not help.", status=answer.status)
        if answer.status == 429:
            wait = "" if answer.retry_after is None else f" It asks to wait {answer.retry_after:g} s."
            return LLMRateLimitError(
                f"{shown}.{wait} Ask again later, or lower concurrency.",
                retryable=answer.retry_wanted is not False,
                retry_after=answer.retry_after,
                status=429,
            )
        if answer.status == 404:
            return LLMUnavailableError(f"{shown}. Check the name of the model, and that base_url is right.", status=404)
        if 300 <= answer.status < 400:
            return LLMUnavailableError(f"{shown}. Redirections are not followed; give the final address as base_url.", status=answer.status)
        passing = answer.status in (408, 409, 425) or answer.status >= 500
        advice = "It may be a passing failure; ask again later" if passing else "The service does not accept this request"
        return LLMUnavailableError(
            f"{shown}. {advice}.",
            retryable=passing if answer.retry_wanted is None else answer.retry_wanted,
            retry_after=answer.retry_after,
            status=answer.status,
        )

    def timed_out(self, seconds: float) -> LLMError:
        """Nothing came in time. A server of one's own may still be busy with the request, so only hosted services are asked again."""
        return LLMTimeoutError(
            f"{self} gave no complete answer in {seconds:g} s. Raise timeout_seconds, or lower max_output_tokens.",
            retryable=self.endpoint.hosted is not None,
        )

    def unreachable(self, error: object) -> LLMError:
        """No connection, or it broke."""
        advice = (
            "Check that the server runs and the address is right." if self.endpoint.hosted is None else "Check the network of this machine."
        )
        return LLMUnavailableError(f"The connection to {self} failed ({self.clean(error)}). {advice}", retryable=True)

    def half_reply(self, error: object) -> LLMError:
        """Return a body that is no JSON although it claims to be."""
        return LLMUnavailableError(f"{self} sent a reply that is cut off or no JSON ({self.clean(error)}).", retryable=True)

    def foreign_reply(self, reply: object) -> LLMError:
        """Something else than the protocol's reply: a page of a captive portal, an empty object."""
        found = f"text that begins {self.clean(reply[:80])!r}" if isinstance(reply, str) else f"a {type(reply).__name__} without an answer"
        return LLMUnavailableError(
            f"{self} sent {found}; expected a reply of the protocol. Check base_url, and for a proxy or login page in between."
        )

    def refusal(self, category: str | None, explanation: str | None) -> LLMError:
        """Return an answer in which the model declines."""
        why = ": ".join(self.clean(part) for part in (category, explanation) if part) or "no reason given"
        return LLMRefusalError(
            f"{self} declined to answer ({why}). It would decline again; use another model, a local scorer, or fallback='taylor'."
        )

    def truncated(self, max_output_tokens: int) -> LLMError:
        """Return an answer that reached its limit."""
        return LLMTruncatedError(
            f"The answer of {self} stops at its limit of {max_output_tokens} tokens. Raise max_output_tokens; reasoning counts too."
        )

    def unexpected(self, error: BaseException) -> LLMError:
        """Whatever else an SDK raises."""
        return LLMUnavailableError(f"Asking {self} failed with {type(error).__name__}: {self.clean(error)}.")


@dataclass(frozen=True)
class FailedStatus:
    """The facts of a reply with an error status.

    Attributes:
        status: HTTP status.
        message: The service's words.
        code: Its own code for the error, or "".
        retry_after: Seconds that it asks to wait, or None.
        retry_wanted: What its header x-should-retry says, or None.
        body: The whole body, as text.
    """

    status: int
    message: str = field(repr=False)  # may quote the request, key included; `Service.clean` comes first
    code: str = ""
    retry_after: float | None = None
    retry_wanted: bool | None = None
    body: str = field(default="", repr=False)

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: object, message: str) -> FailedStatus:
        """From what an SDK's error holds."""
        inner = body.get("error", body) if isinstance(body, Mapping) else body
        details = inner if isinstance(inner, Mapping) else {}
        code = details.get("code") or details.get("type") or ""
        wanted = headers.get("x-should-retry", "").lower()
        return cls(
            status,
            str(details.get("message") or message),
            str(code),
            _seconds(headers),
            {"true": True, "false": False}.get(wanted),
            body if isinstance(body, str) else json.dumps(body, default=str),
        )


def _seconds(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            value = float(headers.get(name, ""))
        except ValueError:
            continue  # a date, or nothing; the own backoff serves then
        if value >= 0:
            return value / unit
    return None
