"""The smallest step by which a uniform plan could come closer to its budget: the reason for what it leaves unused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.depth import Leaving
from proxyprune.planning.shared_widths import SharedWidths, Ties

IndexArray = NDArray[np.int64]

Cost = Callable[[IndexArray, Collection[str]], int]
"""Cost of a network with these atoms, without some blocks."""


def smallest_step(
    graph: ModelGraph,
    ties: Ties,
    units: Sequence[SharedWidths],
    leaving: Sequence[Leaving],
    cost: Cost,
    atoms: IndexArray,
    removed: frozenset[str],
) -> tuple[int, str] | None:
    """Return the cost and the name of the cheapest single step that gives something back; None if nothing was cut.

    Args:
        graph: The traced model.
        ties: Groups that are cut together.
        units: Allowed widths of tied groups and of all others.
        leaving: Blocks that may leave, in sets that leave together.
        cost: Cost of a network.
        atoms: Atoms that the plan keeps, [groups].
        removed: Blocks that it removes.
    """
    spent = cost(atoms, removed)
    steps = []
    for unit in units:
        level = unit.level(atoms)
        if level > 0:
            wider = atoms.copy()
            wider[list(unit.groups)] = unit.counts[level - 1]
            steps.append((cost(wider, removed) - spent, _named(graph, ties, unit)))
    there = (blocks for blocks in leaving if blocks <= removed)
    steps += [(cost(atoms, removed - blocks) - spent, f"'{' with '.join(sorted(blocks))}'") for blocks in there]
    return min((step for step in steps if step[0] > 0), default=None)


def _named(graph: ModelGraph, ties: Ties, unit: SharedWidths) -> str:
    """Return the numbers of the config that a unit follows, or its first group."""
    tie = next((tie for tie in ties.ties if tie.groups == unit.groups), None)
    if tie is None or tie.knob is None:
        return f"'{graph.prunable[unit.groups[0]].id}'"
    from proxyprune.standard.blueprint import written  # imports torch, which other plans do without

    return " with ".join(f"{written(path)} by {fall}" for path, fall in tie.knob.numbers.items())
