"""A planning problem and its solution: all that decides about widths and blocks, and what was chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.budget import Budget
from proxyprune.planning.constraints import Resolved
from proxyprune.planning.depth import Leaving, drop_nested, removal_order
from proxyprune.planning.price import JOINT_LIMIT, JointCost, PlanCost, price_of
from proxyprune.planning.request import PlanRequest
from proxyprune.planning.shared_widths import SharedWidths, Ties, shared, without_groups
from proxyprune.scoring.ranking import Ranking

IndexArray = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """All that decides about widths and blocks."""

    graph: ModelGraph
    ranking: Ranking
    request: PlanRequest
    budgets: tuple[Budget, ...]
    resolved: Resolved
    allocation: str
    ties: Ties

    @property
    def leaving(self) -> list[Leaving]:
        """Blocks that may be removed, besides those that leave in any case; least important first."""
        held = self.resolved.kept_blocks | self.resolved.removed_blocks
        return removal_order(self.graph, self.ranking, held, self.ties.removable(self.graph))

    def gone(self, removed: Collection[str] = ()) -> frozenset[str]:
        """Return blocks together with those that leave in any case."""
        forced = self.resolved.removed_blocks
        return drop_nested([frozenset(removed), forced]) if forced else frozenset(removed)

    @property
    def limit(self) -> int:
        """The most that a plan may cost, in the units of `price`."""
        return self.budgets[0].limit if len(self.budgets) == 1 else JOINT_LIMIT

    @property
    def base(self) -> int:
        """The cost of the unpruned network, in the units of `price`."""
        return self.budgets[0].base if len(self.budgets) == 1 else self.price().one(full_width(self.graph))

    def price(self, removed: Collection[str] = ()) -> PlanCost | JointCost:
        """Return the cost of a network without some blocks, as a function of its widths."""
        return price_of(self.graph, {budget.metric: budget.limit for budget in self.budgets}, frozenset(removed))

    def price_blocks(self, removed: Collection[str]) -> int:
        """Cost at full width without some blocks, and without those that leave in any case."""
        return self.price(self.gone(removed)).one(full_width(self.graph))

    def allowed(self, removed: Collection[str] = ()) -> tuple[SharedWidths, ...]:
        """Return the allowed widths; a group that lives only in removed blocks is left alone."""
        gone = {index for index, group in enumerate(self.graph.prunable) if group.blocks and set(removed).issuperset(group.blocks)}
        units = shared(self.ties, self.graph.prunable, self.resolved.allowed)
        return without_groups(units, gone) if gone else units


@dataclass(frozen=True)
class Choice:
    """Atoms kept, [groups], and blocks removed."""

    atoms: IndexArray
    removed: frozenset[str] = frozenset()


def full_width(graph: ModelGraph) -> IndexArray:
    """Return the atoms of the unpruned network, [groups]."""
    return np.array([group.atoms for group in graph.prunable], dtype=np.int64)
