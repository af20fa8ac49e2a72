"""Proposers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from proxyprune.errors import UnknownNameError
from proxyprune.scoring import find
from proxyprune.searching.proposer import Proposer
from proxyprune.searching.proposers.random_proposer import RandomProposer
from proxyprune.searching.proposers.scorer_proposer import ScorerProposer


def _evolution() -> Proposer:
    from proxyprune.searching.proposers.evolution import EvolutionProposer

    return EvolutionProposer()


def _coordinate() -> Proposer:
    from proxyprune.searching.proposers.coordinate import CoordinateProposer

    return CoordinateProposer()


def _formula() -> Proposer:
    from proxyprune.searching.proposers.formula import FormulaProposer

    return FormulaProposer()


PROPOSERS: Mapping[str, Callable[[], Proposer]] = {
    "random": RandomProposer,
    "evolution": _evolution,
    "coordinate": _coordinate,
    "formula": _formula,
}
"""Proposers that are no scorers; every registered scorer is a proposer too. A scorer that has the name of a proposer, "random", is reached
as "proxyprune:random"."""


def proposer_named(name: str) -> Proposer:
    """Return the proposer with this name; the name of a scorer means that scorer with memory.

    Raises:
        UnknownNameError: If neither a proposer nor a scorer has the name.
        ScorerLoadError: If the scorer cannot be loaded.
    """
    if name in PROPOSERS:
        return PROPOSERS[name]()
    try:
        return ScorerProposer(find(name, {}))
    except UnknownNameError as error:
        close = difflib.get_close_matches(name, PROPOSERS, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise UnknownNameError(f"No proposer is named '{name}'. {hint}Expected {', '.join(PROPOSERS)}, or a scorer. {error}") from error
