"""The coupling of a whole program: outcome of every op, classes of positions, and channel groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from proxyprune.coupling.axes import Axis, Classes, LabelArray
from proxyprune.coupling.groups import ChannelGroup
from proxyprune.coupling.outcome import Outcome


@dataclass(frozen=True, eq=False)
class Coupling:
    """The coupled program.

    Attributes:
        groups: Channel groups, prunable ones first.
        outcomes: Node -> what its rule said.
        parameter_axes: Parameter or buffer -> class of every position of every dimension (-1 where fixed), None for fixed dimensions.
        atom_of: Axis class -> (index of the prunable group, atom in it).
        unsupported_ops: Ops without a rule.
        uncosted_ops: Ops that may multiply and have no cost rule.
        registered_ops: Ops whose rule was registered by the caller.
        classes: The solved axis classes.
        further: The outcomes of each further call.
    """

    groups: tuple[ChannelGroup, ...]
    outcomes: Mapping[Node, Outcome]
    parameter_axes: Mapping[str, tuple[Axis, ...]]
    group_of_class: LabelArray
    atom_of_class: LabelArray
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    registered_ops: tuple[str, ...]
    classes: Classes = field(repr=False)
    further: tuple[Mapping[Node, Outcome], ...] = field(default=(), repr=False)

    def count(self, axis: LabelArray) -> tuple[int, dict[int, int]]:
        """Kept size of an axis as constant + sum of coefficient * atoms kept, by prunable group."""
        if id(axis) not in self._forms:
            self._forms[id(axis)] = (axis, self._form(axis))
        return self._forms[id(axis)][1]

    @cached_property
    def _forms(self) -> dict[int, tuple[LabelArray, tuple[int, dict[int, int]]]]:
        """By the id of an axis, which is kept alive beside its form."""
        return {}

    def _form(self, axis: LabelArray) -> tuple[int, dict[int, int]]:
        groups = self.group_of_class[self.classes.of[axis]]
        constant = int((groups < 0).sum())
        coefficients: dict[int, int] = {}
        present, counts = np.unique(groups[groups >= 0], return_counts=True)
        for group, positions in zip(present.tolist(), counts.tolist(), strict=True):
            coefficients[group] = positions // self.groups[group].atoms
        return constant, coefficients

    def kept_positions(self, axis: LabelArray, kept: Sequence[NDArray[np.bool_]]) -> LabelArray:
        """Positions of an axis that stay when `kept[g]` (bool by atom) says which atoms of group g stay."""
        classes = self.classes.of[axis]
        groups, atoms = self.group_of_class[classes], self.atom_of_class[classes]
        stays = np.ones(len(axis), dtype=bool)
        for group in np.unique(groups[groups >= 0]).tolist():
            here = groups == group
            stays[here] = kept[group][atoms[here]]
        return np.flatnonzero(stays)
