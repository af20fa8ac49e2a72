"""Advice from a scorer that can be asked for it, as the pieces of advice that pruning measures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.proxy.answers.advice import SAME_WIDTH, ProposedAdvice, ProposedLimit
from proxyprune.pruning.advice import Advice
from proxyprune.scoring import ScoringContext
from proxyprune.tracing.module_state import unchanged


@runtime_checkable
class Adviser(Protocol):
    """A scorer that can be asked for limits of a plan, as those that use a language model.

    Attributes:
        name: Name of the scorer.
        ask_advice: Whether it is to be asked.
    """

    name: str
    ask_advice: bool

    def advise(self, graph: ModelGraph, context: ScoringContext) -> ProposedAdvice:
        """Return limits about blocks and channel groups of the graph."""
        ...


@dataclass(frozen=True)
class AskedAdvice:
    """Proposals of an adviser, ready to be measured.

    Attributes:
        advice: To be measured, in the order of the answer.
        notes: Sentences for the plan: what was dropped before measuring, and the note on calibration data.
    """

    advice: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = ()


def asks_advice(scorer: object) -> bool:
    """Return True if a scorer is to be asked for advice."""
    return isinstance(scorer, Adviser) and scorer.ask_advice is True


def asked_advice(scorer: object, graph: ModelGraph, context: ScoringContext) -> AskedAdvice:
    """Ask a scorer for advice, if it is to be asked.

    Raises:
        ProxyPruneError: From asking.
    """
    if not isinstance(scorer, Adviser) or scorer.ask_advice is not True:
        return AskedAdvice()
    with contextlib.nullcontext() if context.model is None else unchanged(context.model):
        proposed = scorer.advise(graph, context)
    advice = tuple(_advice(limit, graph) for limit in proposed.limits)
    return AskedAdvice(advice, _notes(scorer.name, advice, proposed))


def _advice(limit: ProposedLimit, graph: ModelGraph) -> Advice:
    patterns: Sequence[str] = limit.targets
    if limit.kind == SAME_WIDTH:  # widths are shared by groups whose first parameter matches
        patterns = [graph.by_id[group].members[0].parameter for group in limit.targets]
    return Advice(limit.kind, "|".join(patterns), limit.reason, limit.least)


def _notes(name: str, advice: Sequence[Advice], proposed: ProposedAdvice) -> tuple[str, ...]:
    count = len(advice)
    found = [f"Scorer '{name}' proposed {count or 'no'} piece{'' if count == 1 else 's'} of advice."]
    found += [f"Advice of '{name}' was left out before it was measured: {reason}." for reason in proposed.dropped]
    if proposed.data:
        found.append(f"Note of '{name}' on calibration data: \"{proposed.data}\"")
    return tuple(found)
