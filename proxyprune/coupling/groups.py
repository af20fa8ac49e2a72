"""Channel groups, and the coupling of a whole program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from proxyprune.coupling.axes import Axis, Classes, LabelArray
from proxyprune.coupling.outcome import Outcome

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Member:
    """One dimension of one parameter or buffer that is cut when its channel group is cut.

    Attributes:
        parameter: Name in the model's state dict (the first one, for a shared parameter).
        dim: Dimension that shrinks.
        positions: [atoms, multiplicity]; row k holds the indices along `dim` that leave with atom k.
    """

    parameter: str
    dim: int
    positions: IndexArray = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[str | int]:
        """Unpack as (parameter, dim)."""
        yield self.parameter
        yield self.dim


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Parameter slices that must shrink together.

    A group has `atoms` indivisible atoms (a channel, or a whole attention head) of `atom_channels` channels each. Its width
    changes in steps of `step` atoms, because a norm or a grouped convolution has to stay divisible.

    Attributes:
        id: Stable name, made from the first member.
        width: Channels along the first member's dimension that belong to this group.
        unit: Smallest number of channels by which the width can change, step * atom_channels.
        members: Every parameter dimension that is cut with it.
        pinned: Why the group cannot be cut, or None.
        atoms: Number of atoms (all kept in the unpruned model).
        step: Atoms that must leave at a time.
        bins: Atom k lies in bin bins[k]; every bin must keep the same number of atoms. None when there is one bin.
        blocks: Ids of the blocks that own a member, in graph order.
    """

    id: str
    width: int
    unit: int
    members: tuple[Member, ...]
    pinned: str | None
    atoms: int
    step: int = 1
    bins: tuple[int, ...] | None = field(default=None, repr=False)
    blocks: tuple[str, ...] = ()

    @property
    def atom_channels(self) -> int:
        """Channels of the first member that one atom holds (a head's dimension, or 1)."""
        return self.width // self.atoms

    @property
    def floor(self) -> int:
        """Fewest atoms that can be kept: the smallest positive count reachable in whole steps."""
        return self.atoms - (self.atoms - 1) // self.step * self.step


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
        classes: The solved axis classes.
    """

    groups: tuple[ChannelGroup, ...]
    outcomes: Mapping[Node, Outcome]
    parameter_axes: Mapping[str, tuple[Axis, ...]]
    group_of_class: LabelArray
    atom_of_class: LabelArray
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    classes: Classes = field(repr=False)

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
