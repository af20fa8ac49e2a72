"""Events that a scorer reports to an observer while it asks: enough for progress on a terminal and for a table afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from proxyprune.proxy.service.exchange import Usage

if TYPE_CHECKING:
    from proxyprune.proxy.session.price import CostEstimate


@dataclass(frozen=True)
class Planned:
    """The planned requests, before the first one.

    Attributes:
        estimate: Tokens and money, expected and at most.
    """

    estimate: CostEstimate


@dataclass(frozen=True)
class Asked:
    """One request came to its end.

    Attributes:
        done: Requests that are finished.
        expected: Requests of all samples that were begun.
        replayed: Whether the answer came from the cache.
    """

    done: int
    expected: int
    replayed: bool


@dataclass(frozen=True)
class Finished:
    """All that was asked for one ranking.

    Attributes:
        provider: Registered name of the scorer.
        model: Name of the model.
        samples: Valid answers that the ranking rests on.
        dropped: Answers that stayed invalid.
        requests: Requests that were answered, those from the cache included.
        replayed: Requests that were answered from the cache.
        usage: Tokens of all answers, replayed ones included.
        spent_usd: Money spent now (nothing for replayed answers); None when the price is unknown.
        confidence: Mean pairwise Kendall tau, or None.
        concordance: Kendall's W, or None.
        chance: Probability of so much agreement among random answers, or None.
    """

    provider: str
    model: str
    samples: int
    dropped: int
    requests: int
    replayed: int
    usage: Usage = field(default_factory=Usage)
    spent_usd: float | None = None
    confidence: float | None = None
    concordance: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Advised:
    """A model was asked for advice.

    Attributes:
        limits: Limits that it proposed.
        replayed: Whether the answer came from the cache.
        usage: Tokens of the answer.
        spent_usd: Money spent now on ranking and advice together; None when the price is unknown.
    """

    limits: int
    replayed: bool
    usage: Usage = field(default_factory=Usage)
    spent_usd: float | None = None


Event: TypeAlias = Planned | Asked | Finished | Advised
