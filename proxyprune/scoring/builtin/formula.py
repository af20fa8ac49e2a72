"""A formula as a scorer: channel scores from an expression over features of the channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from proxyprune.errors import FormulaError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.builtin.formula_features import NEEDS_OF, FeatureTable
from proxyprune.scoring.contract import ScoringContext, check_needs
from proxyprune.scoring.formula.expression import Expression, features_of, values_of, written
from proxyprune.scoring.formula.operators import FloatArray
from proxyprune.scoring.formula.parser import parsed
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.scale import half_saturation, significant

DEFAULT = "wg"
"""The formula of `taylor`."""

LARGEST = 1e100
"""Largest absolute value of a score."""

NOTE = "Formula: "
"""Beginning of the note that has the formula."""


@dataclass(frozen=True)
class FormulaScorer:
    """Channel scores from a formula, such as `wg * norm(w)`; `search --proposer formula` looks for one.

    The formula is parsed and evaluated by proxyprune, and never executed as code. Its values are compared across the whole network. If
    one of them is negative, the least value of the network is subtracted from all, because scores of channels that leave are added up. A
    block gets the sum over the channels of its groups, brought to [0, 1) by `half_saturation`. If whole blocks may leave and there is a
    loss, block influence decides which.

    It misleads on networks that differ from those that the formula was found on: measure it before you rely on it.

    Args:
        expression: The formula; `FEATURES` and `OPERATORS` list its words.

    Raises:
        FormulaError: If it is no formula, or gives values that are not finite on this network.
    """

    argument: ClassVar[str] = "expression"  # "formula=wg * norm(w)" as a name

    expression: str = DEFAULT
    name: str = field(default="formula", init=False)
    needs: frozenset[str] = field(default=frozenset({"gradients"}), init=False)
    _tree: Expression = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tree = parsed(self.expression)
        object.__setattr__(self, "_tree", tree)
        object.__setattr__(self, "needs", frozenset(NEEDS_OF[name] for name in features_of(tree) if name in NEEDS_OF))

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Measure the features that the formula reads, and evaluate it."""
        check_needs(self, context)
        table = FeatureTable.measured(features_of(self._tree), self, graph, context)
        return formula_ranking(self._tree, table, graph, context.seed)


def formula_values(tree: Expression, table: FeatureTable) -> FloatArray:
    """Return the score of each atom of the network, >= 0.

    Raises:
        FormulaError: If one is not finite, or larger than `LARGEST`.
    """
    values = values_of(tree, table.values, table.sections)
    if not values.size:
        return values
    if np.abs(values).max() > LARGEST:
        raise FormulaError(f"Values of '{written(tree)}' exceed {LARGEST:g}, so they cannot be added up. Bring them to a smaller range.")
    return values - min(0.0, float(values.min()))


def formula_ranking(tree: Expression, table: FeatureTable, graph: ModelGraph, seed: int) -> Ranking:
    """Return the ranking by a formula."""
    atoms = table.by_group(formula_values(tree, table))
    return Ranking(
        scores=half_saturation(_blocks(graph, atoms)),
        scorer="formula",
        channel_scores={group: tuple(significant(value) for value in values.tolist()) for group, values in atoms.items()},
        comparable_channels=True,
        seed=seed,
        notes=(f"{NOTE}{written(tree)}",),
    )


def _blocks(graph: ModelGraph, atoms: dict[str, FloatArray]) -> dict[str, float | None]:
    """Sum over the channels of each block's groups; None for a block without prunable groups."""
    found: dict[str, float | None] = {}
    for block in graph.blocks:
        values = [atoms[group] for group in block.groups if group in atoms]
        found[block.id] = significant(float(np.concatenate(values).sum())) if values else None
    return found
