"""Exact cost: MACs and parameters as a function of how many atoms every channel group keeps.

Every size in the program is linear in these counts, so every cost is a sum of products of linear forms: integers in, integers out, nothing
is run. One multiply-accumulate (MAC) is one product and one addition; FLOPs = 2 x MACs. Counted are convolutions, matrix products and both
products of attention, as torch.utils.flop_counter does under the math attention kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
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


@dataclass(frozen=True)
class CostModel:
    """Exact MACs and parameters of a pruned network.

    `atoms` is always a vector of atoms kept, one for each prunable group, in the order of `groups`; `removed` names the blocks
    that were taken out whole.

    Attributes:
        groups: Ids of the prunable groups.
        full: Atoms of the unpruned network.
        mac_terms: MACs.
        param_terms: Parameters.
        weight_terms: MACs of linear layers and convolutions alone.
    """

    groups: tuple[str, ...]
    full: Counts = field(repr=False)
    mac_terms: Polynomial = field(repr=False)
    param_terms: Polynomial = field(repr=False)
    weight_terms: Polynomial = field(repr=False)
    base_macs: int = 0
    base_params: int = 0

    def macs(self, atoms: Counts, removed: Collection[str] = ()) -> int:
        """Multiply-accumulates of one run."""
        return self._total(self.mac_terms, atoms, removed)

    def conventional_macs(self, atoms: Counts, removed: Collection[str] = ()) -> int:
        """MACs as the literature's counters see them: linear layers and convolutions, without the products of attention."""
        return self._total(self.weight_terms, atoms, removed)

    def params(self, atoms: Counts, removed: Collection[str] = ()) -> int:
        """Parameters that are left."""
        return self._total(self.param_terms, atoms, removed)

    def macs_batch(self, atoms: Counts) -> Counts:
        """MACs of many plans: atoms [plans, groups] -> [plans]."""
        return np.asarray(self.mac_terms.terms(atoms).sum(axis=-1))

    def block_macs(self, atoms: Counts, removed: Collection[str] = ()) -> dict[str, int]:
        """MACs by block; "" holds what lies in no block."""
        return self._by_block(self.mac_terms, atoms, removed)

    def block_params(self, atoms: Counts, removed: Collection[str] = ()) -> dict[str, int]:
        """Parameters by block; "" holds what lies in no block."""
        return self._by_block(self.param_terms, atoms, removed)

    def _total(self, terms: Polynomial, atoms: Counts, removed: Collection[str]) -> int:
        values = terms.terms(atoms)
        if removed:
            values = values[[block not in removed for block in terms.blocks]]
        return int(values.sum())

    def _by_block(self, terms: Polynomial, atoms: Counts, removed: Collection[str]) -> dict[str, int]:
        totals: dict[str, int] = {}
        for block, value in zip(terms.blocks, terms.terms(atoms).tolist(), strict=True):
            totals[block] = totals.get(block, 0) + (0 if block in removed else int(value))
        return totals
