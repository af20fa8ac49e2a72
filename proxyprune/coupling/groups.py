"""Channel groups, and the coupling of a whole program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]

STANDARDISED = "is a dimension that weights are standardised over, so that kept ones would change, in"
NORMALISED = "is a dimension that weights are normalised over, so that kept ones would change, in"
"""Reasons of groups that are pinned because a layer computes its weight from all its inputs."""


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
    def pinned_by_computed_weight(self) -> bool:
        """True if the group is pinned because a layer computes its weight from all its inputs."""
        return self.pinned is not None and (STANDARDISED in self.pinned or NORMALISED in self.pinned)

    @property
    def atom_channels(self) -> int:
        """Channels of the first member that one atom holds (a head's dimension, or 1)."""
        return self.width // self.atoms

    @property
    def floor(self) -> int:
        """Fewest atoms that can be kept: the smallest positive count reachable in whole steps."""
        return self.atoms - (self.atoms - 1) // self.step * self.step
