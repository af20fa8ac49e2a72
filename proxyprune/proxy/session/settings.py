"""The options of the LLM scorers, checked when a scorer is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxyprune.errors import InputError
from proxyprune.proxy.session.events import Event
from proxyprune.support.checks import is_count, is_number

CACHE_MODES = ("read-write", "off", "replay-only")
CENTRES = ("borda", "kemeny")
STATISTICS = ("weights", "taylor", "similarity")
_LEAST_PROMPT_TOKENS = 1500


@dataclass(frozen=True, kw_only=True)
class LLMSettings:
    """Settings of requests to a language model.

    Attributes:
        model: Name of the model, as the service knows it. There is no default: models come and go, and cost differs a hundredfold.
        base_url: Address of a server of one's own. The hosted service's key is never sent there.
        samples: Answers to ask for, each with the blocks in another order.
        max_samples: Answers to ask for at most, while leaving one out still changes the order; None: nine, or `samples` if that is more.
        centre: How answers become one ranking: "borda" (mean rank) or "kemeny" (the order that disagrees least).
        concurrency: Requests under way at a time.
        deadline_seconds: For the whole ranking, retries and waiting included.
        timeout_seconds: For one request.
        retries: Repetitions of a request that failed for a passing reason.
        backoff_seconds: Wait before the first repetition; doubles each time, unless the service says how long.
        max_retry_after_seconds: A longer wait asked for by the service ends the attempt at once.
        max_output_tokens: Longest answer, reasoning included; None: by the number of blocks.
        temperature: None leaves it to the service, which some models insist on.
        prompt_tokens: Longest prompt; a network that does not fit is asked about in stages.
        real_names: Send module names. By default blocks are called b00, b01, ... and nothing of your naming leaves the machine.
        statistics: Measured figures to show beside each block: any of "weights", "taylor", "similarity". None: all of them if a model,
            calibration batches and a loss are at hand, otherwise none. (): none.
        show_time: Show each block's share of the time of a run on this machine. The graph needs times (`proxyprune.with_times`); `prune`
            and `search` add them.
        ask_widths: In a search, also ask for exact widths of channel groups in every round. The solver keeps the budget.
        ask_advice: Also ask for advice: limits of the plan, each with a reason. `prune` measures each on calibration data, and keeps or
            drops it. It costs one more request.
        show_source: Show the model the source code of the blocks' classes when it is asked for advice. The code leaves the machine.
        max_cost_usd: Stop before this is exceeded, by the ranking and the advice together. Needs a known price.
        price_per_million: (input, output) price in USD for a million tokens, for models that the price list does not know.
        cache: Folder for recorded answers, or None.
        cache_mode: "read-write", "off", or "replay-only", which never touches the network.
        audit: File that every attempt is appended to; None: audit.jsonl in the cache folder, if there is one.
        fallback: Scorer to use when the model cannot be asked or its answers do not agree; None: an error, or a ranking marked unreliable.
        observer: Called with an `Event` now and then, possibly from another thread.
    """

    model: str
    base_url: str | None = field(default=None, repr=False)
    samples: int = 5
    max_samples: int | None = None
    centre: str = "borda"
    concurrency: int = 4
    deadline_seconds: float = 900.0
    timeout_seconds: float = 180.0
    retries: int = 3
    backoff_seconds: float = 0.5
    max_retry_after_seconds: float = 60.0
    max_output_tokens: int | None = None
    temperature: float | None = None
    prompt_tokens: int = 6000
    real_names: bool = False
    statistics: tuple[str, ...] | None = None
    show_time: bool = False
    ask_advice: bool = False
    ask_widths: bool = False
    show_source: bool = False
    max_cost_usd: float | None = None
    price_per_million: tuple[float, float] | None = None
    cache: str | Path | None = None
    cache_mode: str = "read-write"
    audit: str | Path | None = None
    fallback: str | None = None
    observer: Callable[[Event], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("statistics", "price_per_million"):
            if isinstance(value := getattr(self, name), list):  # as JSON has them
                object.__setattr__(self, name, tuple(value))
        problems = [*self._text_problems(), *self._number_problems(), *self._combination_problems()]
        if problems:
            raise InputError(f"An LLM scorer cannot be made with these options: {'; '.join(problems)}.")

    @property
    def most_samples(self) -> int:
        """`max_samples`, or its default."""
        return max(self.samples, 9) if self.max_samples is None else self.max_samples

    @property
    def audit_path(self) -> Path | None:
        """The place where attempts are logged."""
        if self.audit is not None:
            return Path(self.audit)
        return None if self.cache is None else Path(self.cache) / "audit.jsonl"

    def _text_problems(self) -> list[str]:
        found = []
        if not isinstance(self.model, str) or not self.model.strip():
            found.append(f"model must be the name of a model, found {self.model!r}")
        for name, allowed in (("cache_mode", CACHE_MODES), ("centre", CENTRES)):
            found += (
                [] if getattr(self, name) in allowed else [f"{name} must be one of {', '.join(allowed)}, found {getattr(self, name)!r}"]
            )
        if self.statistics is not None and not (isinstance(self.statistics, tuple) and set(self.statistics) <= set(STATISTICS)):
            found.append(f"statistics must be None or a tuple of {', '.join(STATISTICS)}, found {self.statistics!r}")
        return found

    def _number_problems(self) -> list[str]:
        found = [
            f"{name} must be {wanted}, found {getattr(self, name)!r}"
            for name, (wanted, fits) in _NUMBERS.items()
            if not fits(getattr(self, name))
        ]
        price = self.price_per_million
        if price is not None and not (isinstance(price, tuple) and len(price) == 2 and all(map(_is_amount, price))):
            found.append(f"price_per_million must be (input, output) in USD, found {price!r}")
        return found

    def _combination_problems(self) -> list[str]:
        found = []
        if is_count(self.samples, 1) and is_count(self.max_samples, 1) and self.most_samples < self.samples:
            found.append(f"max_samples ({self.max_samples}) must not be smaller than samples ({self.samples})")
        found += [
            f"{name} must be True or False, found {getattr(self, name)!r}"
            for name in ("ask_advice", "ask_widths", "show_source", "show_time")
            if not isinstance(getattr(self, name), bool)
        ]
        if self.show_source is True and self.ask_advice is False:
            found.append("show_source shows source code in the question for advice, and needs ask_advice")
        if self.cache_mode == "replay-only" and self.cache is None:
            found.append("cache_mode 'replay-only' needs cache, the folder with the recorded answers")
        return found


def _is_amount(value: object) -> bool:
    return is_number(value, 0.0)


def _whole(least: int, *, or_none: bool = False) -> tuple[str, Callable[[object], bool]]:
    wanted = f"a whole number of at least {least}" + (" or None" if or_none else "")
    return wanted, lambda value: (or_none and value is None) or is_count(value, least)


def _amount(*, positive: bool = False, or_none: bool = False) -> tuple[str, Callable[[object], bool]]:
    wanted = ("a positive number" if positive else "a number >= 0") + (" or None" if or_none else "")
    return wanted, lambda value: (or_none and value is None) or (_is_amount(value) and not (positive and value == 0))


_NUMBERS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "samples": _whole(1),
    "concurrency": _whole(1),
    "retries": _whole(0),
    "prompt_tokens": _whole(_LEAST_PROMPT_TOKENS),
    "max_samples": _whole(1, or_none=True),
    "max_output_tokens": _whole(1, or_none=True),
    "deadline_seconds": _amount(positive=True),
    "timeout_seconds": _amount(positive=True),
    "backoff_seconds": _amount(),
    "max_retry_after_seconds": _amount(),
    "temperature": _amount(or_none=True),
    "max_cost_usd": _amount(or_none=True),
}
"""Option -> what it must be, in words and as a test."""
