"""Earlier attempts as text: what was kept where, and what it cost in loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxyprune.proxy.prompt.templates import filled
from proxyprune.proxy.prompt.token_count import tokens_of
from proxyprune.scoring.brief import Attempt, Brief


def describe_attempts(brief: Brief, base_macs: int, labels: Mapping[str, Sequence[str]], most_tokens: float) -> str:
    """Return the section about earlier attempts, or "" without any.

    The best attempt comes first, then the others from the newest on, as many as fit.

    Args:
        brief: With the attempts, oldest first.
        base_macs: MACs of the unpruned network.
        labels: Blocks that each label stands for; a stage stands for several.
        most_tokens: Room for the lines.
    """
    if not brief.attempts:
        return ""
    numbered = list(enumerate(brief.attempts, start=1))
    best = min(numbered, key=lambda entry: entry[1].loss)
    lines: list[str] = []
    for number, attempt in [best, *(entry for entry in reversed(numbered) if entry is not best)]:
        line = _line(number, attempt, base_macs, labels, is_best=number == best[0])
        if lines and tokens_of("\n".join([*lines, line])) > most_tokens:
            break
        lines.append(line)
    unpruned = "" if brief.base_loss is None else f"The unpruned network has the loss {brief.base_loss:.6g}. "
    return filled("attempts", unpruned=unpruned, lines="\n".join(lines))


def _line(number: int, attempt: Attempt, base_macs: int, labels: Mapping[str, Sequence[str]], *, is_best: bool) -> str:
    kept = (
        f"{label} {value:.2f}" for label, value in ((label, _mean(attempt.kept, blocks)) for label, blocks in labels.items()) if value >= 0
    )
    spent = f", {attempt.macs / base_macs:.1%} of the MACs" if base_macs else ""
    return f"attempt {number}{' (best so far)' if is_best else ''}: loss {attempt.loss:.6g}{spent}; kept {', '.join(kept)}"


def _mean(kept: Mapping[str, float], blocks: Sequence[str]) -> float:
    """Mean over the blocks that were measured; -1 when none was."""
    known = [kept[block] for block in blocks if block in kept]
    return sum(known) / len(known) if known else -1.0
