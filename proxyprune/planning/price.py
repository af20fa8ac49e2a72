"""Price of a plan in the units of its budget: MACs, parameters, predicted nanoseconds, or several of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from proxyprune.errors import InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.time_cost import TimeCost

IndexArray = NDArray[np.int64]

JOINT_LIMIT = 10**6
"""Price of a plan that just meets the tightest of several budgets."""

_LARGEST_EXACT = 2**62
_BINDING = 0.02
"""A budget decides about the next step if the plan is within this share of it."""


class Price(Protocol):
    """The cost of plans. It never falls when a width grows."""

    @property
    def batched(self) -> bool:
        """True if several plans cost little more time than one."""
        ...

    def one(self, atoms: IndexArray) -> int:
        """Cost of one plan; atoms kept per group, [groups]."""
        ...

    def many(self, atoms: IndexArray) -> IndexArray:
        """Cost of several plans, [plans], for [plans, groups]."""
        ...


@dataclass(frozen=True)
class PlanCost:
    """The cost of plans, in the budget's metric, with some blocks removed."""

    graph: ModelGraph
    metric: str
    removed: frozenset[str] = frozenset()

    def one(self, atoms: IndexArray) -> int:
        """Cost of one plan; atoms kept per group, [groups]."""
        cost = self.graph.cost
        if self.metric == "time":
            return time_of(self.graph).total(atoms, self.removed)
        return int(cost.macs(atoms, self.removed) if self.metric == "macs" else cost.params(atoms, self.removed))

    def many(self, atoms: IndexArray) -> IndexArray:
        """Cost of several plans, [plans], for [plans, groups]."""
        if not self.batched:
            return np.array([self.one(row) for row in atoms], dtype=np.int64)
        if self.metric == "time":
            return time_of(self.graph).totals(atoms)
        return np.asarray(self.graph.cost.macs_batch(atoms), dtype=np.int64)

    @property
    def batched(self) -> bool:
        """True if several plans cost little more time than one."""
        return self.metric != "params" and not self.removed


@dataclass(frozen=True)
class JointCost:
    """The share of several budgets that plans use: the largest of any, in millionths of it, rounded up.

    A plan costs at most `JOINT_LIMIT` exactly if it meets every budget.

    Attributes:
        prices: One for each budget.
        limits: The budgets.
    """

    prices: tuple[PlanCost, ...]
    limits: tuple[int, ...]

    def one(self, atoms: IndexArray) -> int:
        """Cost of one plan; atoms kept per group, [groups]."""
        return max(-(-price.one(atoms) * JOINT_LIMIT // limit) for price, limit in zip(self.prices, self.limits, strict=True))

    def many(self, atoms: IndexArray) -> IndexArray:
        """Cost of several plans, [plans], for [plans, groups]."""
        found = np.zeros(len(atoms), np.int64)
        for price, limit in zip(self.prices, self.limits, strict=True):
            own = price.many(atoms)
            if len(own) and int(own.max()) > _LARGEST_EXACT // JOINT_LIMIT:
                shares = np.array([-(-value * JOINT_LIMIT // limit) for value in own.tolist()], np.int64)
            else:
                shares = -(-own * JOINT_LIMIT // limit)
            found = np.maximum(found, shares)
        return found

    @property
    def batched(self) -> bool:
        """True if several plans cost little more time than one."""
        return all(price.batched for price in self.prices)

    def deciding(self, atoms: IndexArray) -> list[tuple[PlanCost, int]]:
        """Return the budgets that hold a plan back, with their limits: those that it exceeds or nearly uses up."""
        pairs = list(zip(self.prices, self.limits, strict=True))
        return [(price, limit) for price, limit in pairs if price.one(atoms) >= (1 - _BINDING) * limit] or pairs


def price_of(graph: ModelGraph, limits: Mapping[str, int], removed: frozenset[str]) -> PlanCost | JointCost:
    """Return the price for budgets by metric, with some blocks removed."""
    prices = tuple(PlanCost(graph, metric, removed) for metric in limits)
    return prices[0] if len(prices) == 1 else JointCost(prices, tuple(limits.values()))


def bases_of(graph: ModelGraph, metrics: Sequence[str]) -> dict[str, int]:
    """Return what the unpruned model spends of each metric.

    Raises:
        InputError: If time is among them and the graph has no cost table.
    """
    return {
        metric: {"macs": graph.macs, "params": graph.params}[metric] if metric != "time" else time_of(graph).total(graph.cost.full)
        for metric in metrics
    }


def time_of(graph: ModelGraph) -> TimeCost:
    """Return the predicted time of a graph.

    Raises:
        InputError: If no cost table was made for it.
    """
    if graph.cost.time is None:
        raise InputError(
            "A target of time needs the cost table of this machine, and this graph has none. Make the plan from "
            "proxyprune.with_times(graph, model, example_inputs); prune(metric='time') does so itself."
        )
    return graph.cost.time
