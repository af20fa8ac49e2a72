"""Axis labels: which positions of which tensor dimensions must leave together.

Every dimension of every tensor in a traced program is described by an `Axis`: an integer label for each position, or None when
the dimension is fixed (batch, space, time, a kernel). Ops relate axes to each other; `AxisLabels` collects these relations and one
connected-components run turns them into classes. Two positions in one class leave together; a class that meets something fixed is pinned.

AxisLabels for positions, rather than symbols for whole dimensions, make concatenation, slicing, padding, interleaved heads, and views that
split across segments plain array operations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

LabelArray = NDArray[np.int64]
Axis = LabelArray | None

FIXED = 0
"""Label of a position that never leaves."""


@dataclass(frozen=True)
class Divisible:
    """The number of kept positions on an axis must stay a multiple of `parts`.

    Where the axis is one channel group and has `runs`, it is cut into `parts` equal runs, which should each keep the same number.
    """

    axis: LabelArray
    parts: int
    runs: bool = True


@dataclass(frozen=True)
class Classes:
    """The outcome: a class for every label, and why a class is pinned.

    Attributes:
        of: Class number by label; `of[FIXED]` is a class of its own.
        reasons: Pinned class -> the first reason that was recorded.
    """

    of: LabelArray
    reasons: dict[int, str]

    def resolve(self, axis: LabelArray) -> LabelArray:
        """Class of every position; -1 where it is fixed or pinned."""
        return np.asarray(self._free[axis])

    @cached_property
    def _free(self) -> LabelArray:
        pinned = np.zeros(int(self.of.max()) + 1, dtype=bool)
        pinned[list(self.reasons)] = True
        pinned[self.of[FIXED]] = True
        return np.where(pinned[self.of], -1, self.of)


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the record of relations: the number of pins and of edges before it."""

    pins: int
    edges: int


@dataclass
class AxisLabels:
    """Collects labels and the relations between them while a program is walked."""

    count: int = 1  # label 0 is FIXED
    divisible: list[Divisible] = field(default_factory=list)
    heads: list[LabelArray] = field(default_factory=list)
    _left: list[LabelArray] = field(default_factory=list)
    _right: list[LabelArray] = field(default_factory=list)
    _pins: list[tuple[LabelArray, str]] = field(default_factory=list)
    _pinned: set[int] = field(default_factory=set)  # ids of the arrays in _pins, which keeps them alive
    _queried: dict[int, LabelArray] = field(default_factory=dict)  # arguments of `may_shrink`, by id

    def fresh(self, size: int) -> Axis:
        """Return new labels, one for each position; a dimension of size 1 has nothing to cut and is fixed."""
        if size <= 1:
            return None
        first = self.count
        self.count += size
        return np.arange(first, self.count, dtype=np.int64)

    def pin(self, axis: Axis, reason: str) -> None:
        """No position of this axis may leave."""
        if axis is not None:
            self._pins.append((axis, reason))
            self._pinned.add(id(axis))

    def may_shrink(self, axis: Axis) -> bool:
        """Return False if an axis is fixed or was pinned as a whole; True says nothing about what is still to come."""
        if axis is None:
            return False
        self._queried[id(axis)] = axis
        return id(axis) not in self._pinned

    @property
    def mark(self) -> Mark:
        """Return the end of the record."""
        return Mark(len(self._pins), len(self._left))

    def copied(self) -> AxisLabels:
        """Return a copy in which more can be recorded."""
        copy = self.with_relations(self.mark, self.mark, AxisLabels())
        assert copy is not None  # no relation was replaced
        return copy

    def with_relations(self, start: Mark, end: Mark, others: AxisLabels) -> AxisLabels | None:
        """Return the labels with the relations of `others` in place of those between two marks.

        Returns:
            None if `may_shrink` was called for an axis that is pinned by only one of the two. Later relations may then differ.
        """
        replaced = {id(axis) for axis, _ in self._pins[start.pins : end.pins]}
        if any(number in self._queried for number in replaced ^ others._pinned):
            return None
        pins = [*self._pins[: start.pins], *others._pins, *self._pins[end.pins :]]
        return replace(
            self,
            divisible=list(self.divisible),
            heads=list(self.heads),
            _left=[*self._left[: start.edges], *others._left, *self._left[end.edges :]],
            _right=[*self._right[: start.edges], *others._right, *self._right[end.edges :]],
            _pins=pins,
            _pinned={id(axis) for axis, _ in pins},
            _queried=dict(self._queried),
        )

    def equate(self, first: Axis, second: Axis, where: str) -> None:
        """Positions leave pairwise together; a labelled position that meets a fixed one is pinned."""
        if first is second:
            return
        if first is None or second is None:
            self.pin(first if second is None else second, f"meets a fixed dimension in {where}")
            return
        if len(first) != len(second):
            for axis in (first, second):
                self.pin(axis, f"meets a dimension of another size in {where}")
            return
        half_fixed = (first == FIXED) != (second == FIXED)
        if half_fixed.any():
            self.pin(np.maximum(first, second)[half_fixed], f"meets fixed positions in {where}")
        both = (first != FIXED) & (second != FIXED) & (first != second)
        if both.any():
            self._left.append(first[both])
            self._right.append(second[both])

    def unify(self, axes: list[Axis], where: str) -> Axis:
        """Equate several axes of one size and return the one that stands for them."""
        chosen = next((axis for axis in axes if axis is not None), None)
        for axis in axes:
            if axis is not chosen:
                self.equate(chosen, axis, where)
        return chosen

    def tie_runs(self, axis: LabelArray, runs: int, where: str) -> LabelArray:
        """Tie position k of every one of `runs` equal runs; returns the first run's labels."""
        grid = axis.reshape(runs, -1)
        for row in grid[1:]:
            self.equate(grid[0], row, where)
        return np.asarray(grid[0])

    def tie_within_runs(self, axis: LabelArray, runs: int, where: str) -> LabelArray:
        """Tie all positions inside each of `runs` equal runs; returns one label a run."""
        grid = axis.reshape(runs, -1)
        for column in grid.T[1:]:
            self.equate(grid[:, 0], column, where)
        return np.ascontiguousarray(grid[:, 0])

    def solve(self) -> Classes:
        """Return connected components of all relations, with the pinned ones marked."""
        left = np.concatenate([*self._left, np.zeros(0, np.int64)])
        right = np.concatenate([*self._right, np.zeros(0, np.int64)])
        edges = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(self.count, self.count))
        _, components = connected_components(edges, directed=False)
        of = components.astype(np.int64)
        reasons: dict[int, str] = {}
        for axis, reason in self._pins:
            for label_class in np.unique(of[axis[axis != FIXED]]).tolist():
                reasons.setdefault(label_class, reason)
        return Classes(of, reasons)
