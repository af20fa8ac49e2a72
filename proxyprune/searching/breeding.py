"""Genetic programming on formulas: random trees, crossover and mutation within limits of size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from proxyprune.errors import FormulaError
from proxyprune.scoring.formula.expression import Constant, Expression, Feature, Operation, levels, nodes, parts_of
from proxyprune.scoring.formula.operators import OPERATORS


@dataclass(frozen=True)
class Individual:
    """A formula that was measured.

    Attributes:
        tree: The formula.
        loss: Its loss; smaller is better.
    """

    tree: Expression
    loss: float


@dataclass(frozen=True)
class Breeding:
    """Makes new formulas. All randomness comes from the generator that is passed.

    Attributes:
        features: Leaves of the trees.
        levels: Most levels of a tree.
        nodes: Most nodes of a tree.
        tournament: Individuals from which the best one becomes a parent.

    Source:
        Koza 1992 (subtree crossover and mutation, tournaments). Deviations: parents come from all that was measured, because measurements
        are few.
    """

    features: tuple[str, ...]
    levels: int = 5
    nodes: int = 20
    tournament: int = 3

    def random(self, rng: np.random.Generator) -> Expression:
        """Return a random tree of at least one operator."""
        return self._within_limits(lambda: self._grown(rng, 2 + int(rng.integers(self.levels - 1)), root=True))

    def child(self, population: Sequence[Individual], rng: np.random.Generator) -> tuple[Expression, str]:
        """Return a new tree made from one or two measured ones, and a word for how."""
        parent = self._parent(population, rng)
        kind = int(rng.choice(len(_SHARES), p=_SHARES))
        if kind == 0 and len(population) > 1:
            other = self._parent(population, rng)
            return self._within_limits(lambda: _crossed(parent, other, rng), parent), "crossover"
        if kind == 1:
            return self._within_limits(lambda: self._changed_node(parent, rng), parent), "changed node"
        if kind == 2 and nodes(parent) > 1:
            return _picked(list(parts_of(parent))[1:], rng), "subtree"
        return self._within_limits(lambda: self._new_subtree(parent, rng), parent), "mutation"

    def _parent(self, population: Sequence[Individual], rng: np.random.Generator) -> Expression:
        """Return the best of a few, and of equal ones the smallest."""
        chosen = [population[int(place)] for place in rng.integers(len(population), size=self.tournament)]
        best = min(chosen, key=lambda one: (one.loss, nodes(one.tree)))
        return best.tree

    def _within_limits(self, make: Callable[[], Expression], otherwise: Expression | None = None) -> Expression:
        """Return a tree within the limits; after many that are not, the one given."""
        for _ in range(_TRIES):
            try:
                found = make()
            except FormulaError:  # larger than any formula may be
                continue
            if levels(found) <= self.levels and nodes(found) <= self.nodes:
                return found
        return otherwise if otherwise is not None else Feature(self.features[0])

    def _grown(self, rng: np.random.Generator, most: int, *, root: bool = False) -> Expression:
        if most <= 1 or (not root and rng.random() < _LEAVES):
            return self._leaf(rng)
        name = _picked(list(OPERATORS), rng)
        return Operation(name, tuple(self._grown(rng, most - 1) for _ in range(OPERATORS[name].arity)))

    def _leaf(self, rng: np.random.Generator) -> Expression:
        if rng.random() < _CONSTANTS:
            return Constant(float(f"{10.0 ** rng.uniform(-2, 2):.1e}"))
        return Feature(_picked(self.features, rng))

    def _new_subtree(self, tree: Expression, rng: np.random.Generator) -> Expression:
        return _replaced(tree, int(rng.integers(nodes(tree))), self._grown(rng, 1 + int(rng.integers(3))))

    def _changed_node(self, tree: Expression, rng: np.random.Generator) -> Expression:
        """Return the tree with another feature, constant or operator of the same arity at one place."""
        place = int(rng.integers(nodes(tree)))
        node = list(parts_of(tree))[place]
        if isinstance(node, Feature):
            return _replaced(tree, place, self._leaf(rng))
        if isinstance(node, Constant):
            return _replaced(tree, place, Constant(float(f"{node.value * 2.0 ** rng.normal():.1e}")))
        alike = [name for name, operator in OPERATORS.items() if operator.arity == len(node.operands) and name != node.operator]
        return _replaced(tree, place, Operation(_picked(alike, rng), node.operands))


_SHARES = (0.4, 0.25, 0.1, 0.25)
"""Shares of crossover, changed nodes, subtrees alone, and new subtrees."""

_LEAVES, _CONSTANTS = 0.25, 0.15
"""Probability of a leaf before the last level, and that a leaf is a constant."""

_TRIES = 50

Choice = TypeVar("Choice")


def _picked(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _crossed(tree: Expression, other: Expression, rng: np.random.Generator) -> Expression:
    """Put a subtree of another tree in place of one of this tree."""
    return _replaced(tree, int(rng.integers(nodes(tree))), _picked(list(parts_of(other)), rng))


def _replaced(tree: Expression, place: int, new: Expression) -> Expression:
    """Return the tree with the subtree at a place of `parts_of` replaced."""
    return _rebuilt(tree, place, new, iter(range(nodes(tree))))


def _rebuilt(tree: Expression, place: int, new: Expression, places: Iterator[int]) -> Expression:
    if next(places) == place:
        for _ in range(nodes(tree) - 1):
            next(places)
        return new
    if not isinstance(tree, Operation):
        return tree
    return Operation(tree.operator, tuple(_rebuilt(part, place, new, places) for part in tree.operands))
