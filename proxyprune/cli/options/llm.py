"""Options of the scorers that ask a language model, gathered into one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import click

from proxyprune.cli.options.completion import scorer_names
from proxyprune.cli.options.shared import gathered

SCORERS = ("openai", "anthropic", "local")
"""The scorers that take these options."""


@dataclass(frozen=True)
class LLMOptions:
    """Options of a language model; None leaves an option at the scorer's default.

    Attributes:
        llm_model: Name of the model.
        base_url: Server of one's own.
        samples: Fewest samples.
        max_samples: Most samples.
        max_cost_usd: Limit in USD.
        price_per_million: (input, output) in USD for a million tokens.
        max_output_tokens: Longest answer.
        prompt_tokens: Longest prompt.
        temperature: For services that take one.
        deadline_seconds: Seconds for the whole ranking.
        timeout_seconds: Seconds for one request.
        cache: Folder of recorded answers.
        cache_mode: "read-write", "off" or "replay-only".
        audit: File that every attempt is appended to.
        fallback: Scorer for when the model gives no usable ranking.
        statistics: Measured figures to show; empty leaves that to the data.
        no_statistics: Show none.
        real_names: Send module names.
        show_time: Show each block's share of the time.
        ask_advice: Also ask for limits of the plan.
        show_source: Send the source code of the blocks with that question.
        dry_run: Show prompt and estimate, and send nothing.
    """

    llm_model: str | None = None
    base_url: str | None = field(default=None, repr=False)
    samples: int | None = None
    max_samples: int | None = None
    max_cost_usd: float | None = None
    price_per_million: tuple[float, float] | None = None
    max_output_tokens: int | None = None
    prompt_tokens: int | None = None
    temperature: float | None = None
    deadline_seconds: float | None = None
    timeout_seconds: float | None = None
    cache: Path | None = None
    cache_mode: str | None = None
    audit: Path | None = None
    fallback: str | None = None
    statistics: tuple[str, ...] = ()
    no_statistics: bool = False
    real_names: bool = False
    show_time: bool = False
    ask_advice: bool = False
    show_source: bool = False
    dry_run: bool = False

    @property
    def _given(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in fields(self) if getattr(self, entry.name) not in (None, (), False))

    def refuse_any(self, who: str) -> None:
        """Make sure that no option is given beside something that asks no language model.

        Raises:
            click.UsageError: Naming the ones that are.
        """
        if self._given:
            typed = ", ".join("--" + name.replace("_", "-") for name in self._given)
            raise click.UsageError(
                f"{who[0].upper()}{who[1:]} uses no language model, so {typed} cannot be given with it. These options belong to --scorer "
                f"{', '.join(SCORERS)}."
            )

    def scorer_options(self, scorer: str) -> dict[str, Any]:
        """Return what to make the scorer with.

        Raises:
            click.UsageError: If the scorer asks no language model and an option for one is given, or the model is not named.
        """
        if scorer not in SCORERS:
            self.refuse_any(f"scorer '{scorer}'")
            return {}
        if self.llm_model is None:
            raise click.UsageError(f"Scorer '{scorer}' needs --llm-model, the name of the language model; there is no default.")
        if self.statistics and self.no_statistics:
            raise click.UsageError("--statistics shows figures and --no-statistics shows none; give one of them.")
        none: dict[str, Any] = {"statistics": ()} if self.no_statistics else {}
        return none | {_PARAMETERS.get(name, name): getattr(self, name) for name in self._given if name not in ("dry_run", "no_statistics")}


_PARAMETERS = {"llm_model": "model"}
"""Option -> argument of the scorer, where they differ: --model names the model file."""

_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--llm-model", metavar="NAME", help="Language model of an LLM scorer; required, without a default."),
    click.option(
        "--base-url", metavar="URL", help="Your own server instead of the hosted service; it never receives the hosted service's key."
    ),
    click.option("--samples", type=_POSITIVE, metavar="N", help="Number of answers, each with shuffled blocks (default 5)."),
    click.option(
        "--max-samples", type=_POSITIVE, metavar="N", help="Largest number of answers, if the order is not stable before (default 9)."
    ),
    click.option(
        "--max-cost-usd",
        "--max-cost",
        "max_cost_usd",
        type=click.FloatRange(min=0),
        metavar="USD",
        help="Stop before this cost is exceeded.",
    ),
    click.option(
        "--price-per-million",
        "--price",
        "price_per_million",
        type=(float, float),
        metavar="IN OUT",
        help="Price in USD of a million tokens in and out, if it is not known.",
    ),
    click.option("--max-output-tokens", type=_POSITIVE, metavar="N", help="Largest length of an answer in tokens, reasoning included."),
    click.option(
        "--prompt-tokens",
        type=_POSITIVE,
        metavar="N",
        help="Largest prompt in tokens (default 6000); a longer one is split into stages.",
    ),
    click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="Sampling temperature (default: that of the service)."),
    click.option(
        "--deadline-seconds",
        "--deadline",
        "deadline_seconds",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Time limit of the whole ranking (default 900).",
    ),
    click.option(
        "--timeout-seconds",
        "--timeout",
        "timeout_seconds",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Time limit of one request (default 180).",
    ),
    click.option(
        "--cache", type=_PATH, metavar="DIR", help="Folder to which answers are recorded, and from which recorded answers are used."
    ),
    click.option(
        "--cache-mode",
        type=click.Choice(["read-write", "off", "replay-only"]),
        help="replay-only reproduces a recorded ranking and opens no connection.",
    ),
    click.option(
        "--audit", type=_PATH, metavar="FILE", help="File to which every attempt is appended (default: audit.jsonl in the cache)."
    ),
    click.option(
        "--fallback",
        metavar="SCORER",
        shell_complete=scorer_names,
        help="Scorer to use if the model gives no usable ranking; the result records this.",
    ),
    click.option(
        "--statistics",
        type=click.Choice(["weights", "taylor", "similarity"]),
        multiple=True,
        help="Add these measured figures to the prompt; repeatable (default: all, if the model file has data and a loss).",
    ),
    click.option("--no-statistics", is_flag=True, help="Add no measured figures to the prompt."),
    click.option("--real-names", is_flag=True, help="Send module names (default: replaced by b00, b01, ...)."),
    click.option("--show-time", is_flag=True, help="Add each block's share of the time of a run on this machine to the prompt."),
    click.option(
        "--ask-advice", is_flag=True, help="Also request limits with reasons; prune measures each and keeps those that lower the loss."
    ),
    click.option("--show-source", is_flag=True, help="With --ask-advice, send the source code of the blocks' classes."),
    click.option("--dry-run", is_flag=True, help="Show the prompt and the estimated cost; send nothing."),
)

llm_options = gathered("llm", LLMOptions, _OPTIONS)
"""Give a command the options of `LLMOptions`, as its argument `llm`."""
