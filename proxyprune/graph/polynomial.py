"""Sums of products of linear forms in the numbers of atoms kept: every exact cost is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
LinearForm = tuple[int, tuple[tuple[int, int], ...]]
"""A size: constant + sum of coefficient * atoms kept, as (constant, ((group, coefficient), ...))."""
Summand = tuple[int, tuple[LinearForm, ...], str]
"""One part of a cost: constant * product of sizes, spent in one block ("" for none)."""


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of linear forms in the group counts, arranged for evaluation of many plans at once.

    Attributes:
        matrix: [forms, groups]; with `offset` [forms] it gives the sizes: sizes = matrix @ counts + offset.
        constants: [terms].
        factors: [terms, degree] indices of forms; the last form is the constant 1.
        blocks: Block of every term.
    """

    matrix: NDArray[np.int64] = field(repr=False)
    offset: NDArray[np.int64] = field(repr=False)
    constants: NDArray[np.int64] = field(repr=False)
    factors: NDArray[np.int64] = field(repr=False)
    blocks: tuple[str, ...] = field(repr=False)

    @staticmethod
    def build(terms: Iterable[Summand], groups: int) -> Polynomial:
        """Merge the summands of a cost over `groups` prunable groups; equal products in one block become one term."""
        forms: dict[LinearForm, int] = {}
        merged: dict[tuple[tuple[int, ...], str], int] = {}
        for constant, factors, block in terms:
            indices, scale = [], constant
            for offset, coefficients in factors:
                if not coefficients:
                    scale *= offset
                    continue
                indices.append(forms.setdefault((offset, coefficients), len(forms)))
            key = (tuple(sorted(indices)), block)
            merged[key] = merged.get(key, 0) + scale
        matrix = np.zeros((len(forms) + 1, groups), np.int64)
        offsets = np.ones(len(forms) + 1, np.int64)
        for (offset, coefficients), row in forms.items():
            offsets[row] = offset
            for group, coefficient in coefficients:
                matrix[row, group] += coefficient
        degree = max((len(indices) for indices, _ in merged), default=0) or 1
        table = np.full((len(merged), degree), len(forms), np.int64)
        for row, (chosen, _) in enumerate(merged):
            table[row, : len(chosen)] = chosen
        constants = np.array(list(merged.values()), np.int64).reshape(-1)
        return Polynomial(matrix, offsets, constants, table, tuple(block for _, block in merged))

    def terms(self, counts: Counts) -> NDArray[np.int64]:
        """Value of every term; counts [..., groups] -> [..., terms]."""
        sizes = counts @ self.matrix.T + self.offset
        values = self.constants
        for column in range(self.factors.shape[1]):
            values = values * sizes[..., self.factors[:, column]]
        return np.asarray(values)
