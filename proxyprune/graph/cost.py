"""Exact cost: MACs and parameters as a function of how many atoms every channel group keeps.

Every size in the program is linear in these counts, so every cost is a sum of products of linear forms: integers in, integers out, nothing
is run. One multiply-accumulate (MAC) is one product and one addition; FLOPs = 2 x MACs. Counted are convolutions, matrix products and both
products of attention, as torch.utils.flop_counter does under the math attention kernel.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from proxyprune.graph.polynomial import Counts, Polynomial
from proxyprune.graph.time_cost import TimeCost


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
        time: Predicted time on this machine, if a cost table was made for it (`proxyprune.with_times`).
    """

    groups: tuple[str, ...]
    full: Counts = field(repr=False)
    mac_terms: Polynomial = field(repr=False)
    param_terms: Polynomial = field(repr=False)
    weight_terms: Polynomial = field(repr=False)
    base_macs: int = 0
    base_params: int = 0
    time: TimeCost | None = field(default=None, repr=False, compare=False)

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
