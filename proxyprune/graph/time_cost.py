"""Predicted time of a pruned network, in whole nanoseconds: a sum over its ops, each interpolated between measurements.

Every op's time is rounded to a whole number and never falls when a width grows, so that a budget of time is solved as one of MACs is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from proxyprune.graph.polynomial import Counts, LinearForm, Polynomial

FloatArray = NDArray[np.float64]


def rising(values: FloatArray) -> FloatArray:
    """Return values that never fall along any axis: half way between the least rising array above and the greatest below."""
    above, below = values, values
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return np.asarray((above + below) / 2, dtype=np.float64)


@dataclass(frozen=True)
class Side:
    """One width of an op, and what it counts as.

    Attributes:
        widths: Widths that were measured, ascending, [points].
        effective: Width that each width from 0 up counts as, [most + 1]: a width off the machine's tile may cost as much as a larger one.
    """

    widths: FloatArray = field(repr=False)
    effective: FloatArray = field(repr=False)

    @staticmethod
    def of(widths: Collection[int], penalties: Mapping[int, float], tile: int) -> Side:
        """Build a side from measured widths.

        Args:
            widths: Measured widths.
            penalties: Greatest power of two below the tile that divides a width -> how much longer such a width takes; 1.0 for none.
            tile: Multiple at which a width is fast.
        """
        points = np.array(sorted(set(widths)), dtype=np.float64)
        most = int(points[-1])
        width = np.arange(most + 1, dtype=np.int64)
        factor = np.ones(most + 1)
        for divisor, penalty in penalties.items():
            factor[(width % divisor == 0) & (width % min(2 * divisor, tile) != 0)] = max(1.0, penalty)
        factor[points.astype(np.int64)] = 1.0
        cap = np.minimum(-(-width // tile) * tile, points[np.searchsorted(points, width)])
        effective = np.maximum.accumulate(np.minimum(width * factor, cap))
        return Side(points, effective.astype(np.float64))

    def place(self, widths: Counts) -> tuple[NDArray[np.int64], FloatArray]:
        """Return the measured width at or below each width, as an index, and how far it is towards the next."""
        if len(self.widths) == 1:
            return np.zeros(widths.shape, np.int64), np.zeros(widths.shape)
        value = self.effective[np.clip(widths, 0, len(self.effective) - 1)]
        index = np.clip(np.searchsorted(self.widths, value, side="right") - 1, 0, len(self.widths) - 2)
        low, high = self.widths[index], self.widths[index + 1]
        return index, np.clip((value - low) / (high - low), 0.0, 1.0)


@dataclass(frozen=True)
class Surface:
    """Time of one op at any two widths.

    Attributes:
        first: Widths of the first side.
        second: Widths of the second side.
        nanoseconds: [points of first, points of second]; never falls along either.
    """

    first: Side
    second: Side
    nanoseconds: FloatArray = field(repr=False)

    def at(self, first: Counts, second: Counts) -> FloatArray:
        """Interpolate; widths [...] -> nanoseconds [...]."""
        (row, down), (column, right) = self.first.place(first), self.second.place(second)
        below = np.minimum(row + 1, len(self.first.widths) - 1)
        beside = np.minimum(column + 1, len(self.second.widths) - 1)
        top = self.nanoseconds[row, column] * (1 - right) + self.nanoseconds[row, beside] * right
        bottom = self.nanoseconds[below, column] * (1 - right) + self.nanoseconds[below, beside] * right
        return np.asarray(top * (1 - down) + bottom * down)


@dataclass(frozen=True)
class Curve:
    """Time of one op by the amount of work it does: multiplications, or elements read and written.

    Attributes:
        amounts: [points], ascending.
        nanoseconds: [points]; never falls.
    """

    amounts: FloatArray = field(repr=False)
    nanoseconds: FloatArray = field(repr=False)

    def at(self, amounts: Counts) -> FloatArray:
        """Interpolate; amounts [...] -> nanoseconds [...]. Below the first point the time is that of the first point."""
        return np.asarray(np.interp(amounts, self.amounts, self.nanoseconds))


@dataclass(frozen=True)
class OpUse:
    """One op of a network.

    Attributes:
        name: Op and module, for people.
        block: Block that it lies in; "" for none.
        time: Its time by widths or by amount of work.
        sizes: The two widths of a surface; empty for a curve.
        work: Summands of the amount of work of a curve, each a constant and its factors; empty for a surface.
    """

    name: str
    block: str
    time: Surface | Curve
    sizes: tuple[LinearForm, ...] = ()
    work: tuple[tuple[int, tuple[LinearForm, ...]], ...] = ()


@dataclass(frozen=True)
class TimeCost:
    """Predicted nanoseconds of one run for any widths.

    Attributes:
        uses: The ops, in execution order.
        overhead: Nanoseconds that every call costs beside its own work.
        calls: Block -> number of ops that compute something, those that could not be timed included.
        scale: Factor on the ops' time: what they take inside the network for what they take alone.
        multiples: Group -> the multiple of channels that pays on this machine.
        settings: What was timed, for the reader: device, threads, dtype, batch; plain JSON values.
        untimed: Calls that could not be timed alone; their time is part of the overhead.
        groups: Number of prunable groups.
        measured_now: Number of calls that were timed for it; the others were in the table.
    """

    uses: tuple[OpUse, ...] = field(repr=False)
    overhead: float
    calls: Mapping[str, int] = field(repr=False)
    scale: float
    multiples: Mapping[str, int] = field(repr=False)
    settings: Mapping[str, str | int | bool | None]
    untimed: tuple[str, ...]
    groups: int
    measured_now: int = 0
    _surfaces: tuple[tuple[Surface, Counts, _Forms, _Forms], ...] = field(init=False, repr=False, compare=False)
    _curves: tuple[tuple[Curve, int, Polynomial], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members: dict[int, list[int]] = {}
        for index, use in enumerate(self.uses):
            if isinstance(use.time, Surface):
                members.setdefault(id(use.time), []).append(index)
        surfaces, curves = [], []
        for indices in members.values():
            sides = [_Forms.of([self.uses[index].sizes[side] for index in indices], self.groups) for side in (0, 1)]
            surfaces.append((self.uses[indices[0]].time, np.array(indices, np.int64), *sides))
        for index, use in enumerate(self.uses):
            if isinstance(use.time, Curve):
                summands = [(constant, factors, "") for constant, factors in use.work]
                curves.append((use.time, index, Polynomial.build(summands, self.groups)))
        object.__setattr__(self, "_surfaces", tuple(surfaces))
        object.__setattr__(self, "_curves", tuple(curves))

    def by_use(self, atoms: Counts) -> Counts:
        """Nanoseconds of every op, [..., uses]; atoms kept per group, [..., groups]."""
        found = np.zeros((*atoms.shape[:-1], len(self.uses)))
        for surface, indices, first, second in self._surfaces:
            found[..., indices] = surface.at(first.sizes(atoms), second.sizes(atoms))
        for curve, index, work in self._curves:
            found[..., index] = curve.at(work.terms(atoms).sum(axis=-1))
        return np.rint(found * self.scale).astype(np.int64)

    def total(self, atoms: Counts, removed: Collection[str] = ()) -> int:
        """Nanoseconds of one run without some blocks."""
        stays = np.array([use.block not in removed for use in self.uses], dtype=bool)
        return int(self.by_use(atoms)[..., stays].sum()) + self._overhead(removed)

    def totals(self, atoms: Counts) -> Counts:
        """Nanoseconds of one run of several plans, [plans], for [plans, groups]."""
        return np.asarray(self.by_use(atoms).sum(axis=-1) + self._overhead(()))

    def by_block(self, atoms: Counts, removed: Collection[str] = ()) -> dict[str, int]:
        """Nanoseconds by block; "" holds what lies in no block."""
        found = {block: 0 if block in removed else round(self.overhead * count) for block, count in self.calls.items()}
        for use, value in zip(self.uses, self.by_use(atoms).tolist(), strict=True):
            found[use.block] = found.get(use.block, 0) + (0 if use.block in removed else value)
        return found

    def _overhead(self, removed: Collection[str]) -> int:
        return sum(round(self.overhead * count) for block, count in self.calls.items() if block not in removed)


@dataclass(frozen=True)
class _Forms:
    """Several linear forms: sizes = matrix @ atoms + offset."""

    matrix: Counts
    offset: Counts

    @staticmethod
    def of(forms: Sequence[LinearForm], groups: int) -> _Forms:
        matrix, offset = np.zeros((len(forms), groups), np.int64), np.zeros(len(forms), np.int64)
        for row, (constant, coefficients) in enumerate(forms):
            offset[row] = constant
            for group, coefficient in coefficients:
                matrix[row, group] += coefficient
        return _Forms(matrix, offset)

    def sizes(self, atoms: Counts) -> Counts:
        return np.asarray(atoms @ self.matrix.T + self.offset)
