"""The cost of requests: an estimate and an upper bound before the first request, and the account while it goes on.

Prices come from the optional package genai-prices, which works offline, or from the caller. A price that is not known is unknown, never 0:
a server on this machine may hand requests on to a paid service.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from proxyprune.errors import LLMBudgetError, LLMError, LLMTimeoutError
from proxyprune.proxy.prompt.question import Question
from proxyprune.proxy.prompt.survey import Survey
from proxyprune.proxy.prompt.token_count import CHARACTERS_PER_TOKEN, tokens_of_schema
from proxyprune.proxy.service.endpoint import ANTHROPIC, OPENAI, Endpoint
from proxyprune.proxy.service.exchange import Request, Usage

OUTPUT_TOKENS_PER_BLOCK = 10
REASONING_TOKENS = 1000
"""Allowance in the estimate for a hosted model that reasons before it answers."""

_MILLION = 1_000_000
_PRICE_LIST_IDS = {OPENAI: "openai", ANTHROPIC: "anthropic"}


@dataclass(frozen=True)
class Price:
    """USD for a million tokens, and where that comes from."""

    input_usd: float
    output_usd: float
    source: str

    def of(self, usage: Usage) -> float:
        """USD; discounts for cached tokens are not counted, so the true cost may be lower."""
        return (usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd) / _MILLION


@dataclass(frozen=True)
class CostEstimate:
    """The cost of a ranking.

    Attributes:
        requests: (expected, at most) requests: every sample answered at the first attempt, or every possible sample asked twice.
        input_tokens: (expected, at most).
        output_tokens: (expected, at most).
        usd: (expected, at most), or None when the price is unknown.
        price: The price, or None.
        stages: Stages that a large network is asked in, or 0.
    """

    requests: tuple[int, int]
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    usd: tuple[float, float] | None
    price: Price | None
    stages: int = 0


def price_of(endpoint: Endpoint, model: str, given: tuple[float, float] | None) -> Price | None:
    """Return the price of a model, or None when nobody knows it."""
    if given is not None:
        return Price(float(given[0]), float(given[1]), "given")
    provider = None if endpoint.hosted is None else _PRICE_LIST_IDS.get(endpoint.hosted)
    if provider is None:
        return None
    try:
        from genai_prices import Usage as Priced, calc_price
    except ImportError:
        return None
    try:
        # One short request of each kind, because some prices rise with the length of the prompt.
        one_in = calc_price(Priced(input_tokens=1000, output_tokens=0), model_ref=model, provider_id=provider).total_price
        one_out = calc_price(Priced(input_tokens=0, output_tokens=1000), model_ref=model, provider_id=provider).total_price
    except Exception:  # noqa: BLE001  a model that the list does not know, or any defect of the list: the price is unknown
        return None
    return Price(float(one_in) * 1000, float(one_out) * 1000, "genai-prices")


def output_limit(prompt: Question[object], hosted: bool, given: int | None) -> int:
    """Longest answer to ask for: room for every score, and for reasoning where a hosted model may reason."""
    if given is not None:
        return given
    return prompt.answer_tokens + (8000 if hosted else 200)


def most_usage(request: Request) -> Usage:
    """Upper bound for one request that is answered, found invalid, asked again and answered again."""
    prompt = round(request.characters / CHARACTERS_PER_TOKEN) + tokens_of_schema(request.schema) + 200
    return Usage(2 * prompt + request.max_output_tokens + 200, 2 * request.max_output_tokens)


def estimate(survey: Survey, requests: tuple[Request, ...], samples: tuple[int, int], hosted: bool, price: Price | None) -> CostEstimate:
    """Cost of a ranking, from the requests of its first sample.

    Args:
        survey: What is asked.
        requests: Of one sample.
        samples: (fewest, most).
        hosted: Whether the model may reason.
        price: Or None.
    """
    least, most = samples
    prompts = survey.prompts(0)
    out = sum(OUTPUT_TOKENS_PER_BLOCK * len(prompt.labels.of) + (REASONING_TOKENS if hosted else 0) for prompt in prompts)
    expected = Usage(sum(prompt.tokens for prompt in prompts) * least, out * least)
    bounds = [most_usage(request) for request in requests]
    bound = Usage(sum(usage.input_tokens for usage in bounds) * most, sum(usage.output_tokens for usage in bounds) * most)
    return CostEstimate(
        requests=(len(requests) * least, 2 * len(requests) * most),
        input_tokens=(expected.input_tokens, bound.input_tokens),
        output_tokens=(min(expected.output_tokens, bound.output_tokens), bound.output_tokens),
        usd=None if price is None else (price.of(expected), price.of(bound)),
        price=price,
        stages=len(survey.stages or ()),
    )


def with_question(found: CostEstimate, question: Question[object], request: Request, hosted: bool) -> CostEstimate:
    """Return an estimate with one more question, asked once or, if its answer is invalid, twice."""
    bound = most_usage(request)
    expected = Usage(question.tokens, min(question.answer_tokens + (REASONING_TOKENS if hosted else 0), bound.output_tokens))
    usd = None
    if found.usd is not None and found.price is not None:
        usd = found.usd[0] + found.price.of(expected), found.usd[1] + found.price.of(bound)
    return replace(
        found,
        requests=(found.requests[0] + 1, found.requests[1] + 2),
        input_tokens=(found.input_tokens[0] + expected.input_tokens, found.input_tokens[1] + bound.input_tokens),
        output_tokens=(found.output_tokens[0] + expected.output_tokens, found.output_tokens[1] + bound.output_tokens),
        usd=usd,
    )


@dataclass
class Account:
    """Money spent on one ranking; safe to use from several threads.

    Attributes:
        price: Or None when unknown.
        limit_usd: Most that may be spent, or None.
    """

    price: Price | None
    limit_usd: float | None
    usage: Usage = field(default_factory=Usage)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.limit_usd is not None and self.price is None:
            raise LLMBudgetError(
                f"A limit of ${self.limit_usd:g} cannot be kept, because the price of this model is unknown. Install the extra "
                "proxyprune[prices], give price_per_million=(input, output) in USD, or omit the limit."
            )

    @property
    def spent_usd(self) -> float | None:
        """Spent so far; None when the price is unknown."""
        return None if self.price is None else self.price.of(self.usage)

    def charge(self, usage: Usage) -> None:
        """Add what an answer used."""
        with self._lock:
            self.usage = self.usage + usage

    def charge_failure(self, request: Request, error: LLMError) -> None:
        """Add what a failed request may have used at most: a service that was not waited for may go on, and bill it."""
        if isinstance(error, LLMTimeoutError) or error.status is None:
            self.charge(Usage(round(request.characters / CHARACTERS_PER_TOKEN), request.max_output_tokens))

    def affordable(self, wanted: list[Usage]) -> int:
        """Return the number of these, in turn, that may be begun without any chance to exceed the limit."""
        if self.limit_usd is None or self.price is None:
            return len(wanted)
        left = self.limit_usd - self.price.of(self.usage)
        for count, usage in enumerate(wanted):
            left -= self.price.of(usage)
            if left < 0.0:
                return count
        return len(wanted)
