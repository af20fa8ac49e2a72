"""The smallest step by which a uniform plan could come closer to its budget: the reason for what it leaves unused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.depth import Leaving
from proxyprune.planning.problem import Choice, Problem
from proxyprune.planning.shared_widths import SharedWidths, Ties, allows

IndexArray = NDArray[np.int64]

Cost = Callable[[IndexArray, Collection[str]], int]
"""Cost of a network with these atoms, without some blocks."""


def wider_units(problem: Problem, choice: Choice, undecided: Ties) -> Iterator[tuple[SharedWidths, IndexArray]]:
    """Yield every unit that was cut, with the atoms of the plan in which it alone has its next wider level, [groups].

    A number that divides others, such as a number of heads, has the next level that divides them as they are.

    Args:
        problem: The problem, in which the numbers that divide others are decided.
        choice: Its solution.
        undecided: The ties before these numbers were decided.
    """
    for unit in problem.allowed(choice.removed):
        level = unit.level(choice.atoms)
        if level > 0:
            yield unit, _with_level(choice.atoms, unit, level - 1)
    if not undecided.divisors:
        return
    dividing = [tie for tie in undecided.ties if tie.knob is not None and not undecided.divisors.isdisjoint(tie.knob.numbers)]
    for unit in replace(problem, ties=undecided).allowed(choice.removed):
        if any(set(unit.groups) <= set(tie.groups) for tie in dividing):
            levels = reversed(range(unit.level(choice.atoms)))
            plans = (_with_level(choice.atoms, unit, level) for level in levels)
            yield from ((unit, atoms) for atoms in plans if allows(undecided, problem.graph.prunable, atoms))


def _with_level(atoms: IndexArray, unit: SharedWidths, level: int) -> IndexArray:
    wider = atoms.copy()
    wider[list(unit.groups)] = unit.counts[level]
    return wider


def smallest_step(
    graph: ModelGraph,
    ties: Ties,
    wider: Sequence[tuple[SharedWidths, IndexArray]],
    leaving: Sequence[Leaving],
    cost: Cost,
    choice: Choice,
) -> tuple[int, str] | None:
    """Return the cost and the name of the cheapest single step that gives something back; None if nothing was cut.

    Args:
        graph: The traced model.
        ties: Groups that are cut together.
        wider: Units that were cut, each with the atoms of the plan in which it is wider, [groups].
        leaving: Blocks that may leave, in sets that leave together.
        cost: Cost of a network.
        choice: What the plan keeps and removes.
    """
    spent = cost(choice.atoms, choice.removed)
    steps = [(cost(atoms, choice.removed) - spent, _named(graph, ties, unit, atoms - choice.atoms)) for unit, atoms in wider]
    there = (blocks for blocks in leaving if blocks <= choice.removed)
    steps += [(cost(choice.atoms, choice.removed - blocks) - spent, f"'{' with '.join(sorted(blocks))}'") for blocks in there]
    return min((step for step in steps if step[0] > 0), default=None)


def _named(graph: ModelGraph, ties: Ties, unit: SharedWidths, back: IndexArray) -> str:
    """Return the numbers of the config that a unit follows, each with how much it grows, or its first group.

    Args:
        graph: The traced model.
        ties: Groups that are cut together.
        unit: The unit.
        back: Atoms that come back, [groups].
    """
    first = unit.groups[0]
    knob = next((tie.knob for tie in ties.ties if first in tie.groups), None)
    if knob is None:
        return f"'{graph.prunable[first].id}'"
    from proxyprune.standard.blueprint import written  # imports torch, which other plans do without

    steps = int(back[first]) // knob.atoms[first]
    return " with ".join(f"{written(path)} by {fall * steps}" for path, fall in knob.numbers.items())
