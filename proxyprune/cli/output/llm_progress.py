"""Output about requests to a language model: progress, the bill, and what a dry run prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from proxyprune.proxy.scorer import Preview
from proxyprune.proxy.session.events import Advised, Asked, Event, Finished, Planned
from proxyprune.proxy.session.price import CostEstimate
from proxyprune.support.dataclass_json import to_plain


@dataclass
class Listener:
    """Receives a scorer's events.

    Attributes:
        finished: The last event, once there is one.
        say: Shows progress; set while a stage runs.
    """

    finished: Finished | None = None
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Planned):
            self.say(f"asking, {_money(event.estimate)}")
        elif isinstance(event, Asked):
            self.say(f"{event.done} of {event.expected} answers")
        elif isinstance(event, Finished):
            self.finished = event
        elif self.finished is not None:
            self.finished = _with_advice(self.finished, event)

    def table(self) -> Table | None:
        """Return what was asked and what it cost; None when nobody was asked."""
        if self.finished is None:
            return None
        done = self.finished
        title = f"\nRequests to {done.model} ({done.provider})"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for heading in ("samples", "dropped", "confidence", "W", "by chance", "answers", "from cache", "tokens in", "tokens out", "cost"):
            table.add_column(heading, justify="right")
        table.add_row(
            str(done.samples),
            str(done.dropped),
            "" if done.confidence is None else f"{done.confidence:.2f}",
            "" if done.concordance is None else f"{done.concordance:.2f}",
            "" if done.chance is None else f"{done.chance:.1%}",
            str(done.requests),
            str(done.replayed),
            f"{done.usage.input_tokens:,}",
            f"{done.usage.output_tokens:,}",
            "none" if done.replayed == done.requests and not done.spent_usd else _usd(done.spent_usd),
        )
        return table

    def payload(self) -> dict[str, Any] | None:
        """Return the same as plain JSON types."""
        if self.finished is None:
            return None
        done = self.finished
        return {
            "provider": done.provider,
            "model": done.model,
            "samples": done.samples,
            "dropped": done.dropped,
            "requests": done.requests,
            "replayed": done.replayed,
            "usage": done.usage.to_dict(),
            "spent_usd": done.spent_usd,
            "confidence": done.confidence,
            "concordance": done.concordance,
            "chance": done.chance,
        }


def _with_advice(done: Finished, event: Advised) -> Finished:
    return replace(
        done,
        requests=done.requests + 1,
        replayed=done.replayed + event.replayed,
        usage=done.usage + event.usage,
        spent_usd=event.spent_usd,
    )


def estimate_table(estimate: CostEstimate) -> Table:
    """Return what asking would cost."""
    table = Table(title="\nBefore anything is sent", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("", "expected", "at most"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = (("requests", estimate.requests), ("tokens in", estimate.input_tokens), ("tokens out", estimate.output_tokens))
    for label, (expected, most) in rows:
        table.add_row(label, f"{expected:,}", f"{most:,}")
    usd = ("unknown", "unknown") if estimate.usd is None else (f"${estimate.usd[0]:.4f}", f"${estimate.usd[1]:.4f}")
    table.add_row("cost" if estimate.price is None else f"cost (prices: {estimate.price.source})", *usd)
    return table


def preview_text(preview: Preview) -> str:
    """Exactly what the first sample would send."""
    parts = [f"# To {preview.destination}; the blocks are listed in another order in every sample."]
    for index, prompt in enumerate(preview.prompts, start=1):
        if index == 1 or prompt.system != preview.prompts[index - 2].system:
            parts += ["===== system =====", prompt.system.rstrip()]
        parts += [f"===== request {index} of {len(preview.prompts)} =====", prompt.user.rstrip()]
    return "\n".join(parts)


def preview_payload(preview: Preview) -> dict[str, Any]:
    """Return the same as plain JSON types."""
    return {
        "schema": 1,
        "destination": preview.destination,
        "estimate": to_plain(preview.estimate),
        "prompts": [
            {"part": prompt.part, "system": prompt.system, "user": prompt.user, "answer_schema": prompt.schema}
            for prompt in preview.prompts
        ],
    }


def preview_shown(preview: Preview) -> tuple[RenderableType, ...]:
    """Tables of a dry run."""
    return (estimate_table(preview.estimate), "Nothing was sent.")


def _money(estimate: CostEstimate) -> str:
    return "cost unknown" if estimate.usd is None else f"about ${estimate.usd[0]:.4f}, at most ${estimate.usd[1]:.4f}"


def _usd(amount: float | None) -> str:
    return "unknown" if amount is None else f"${amount:.4f}"
