"""What a traced model looks like to the rest of the package: channel groups, blocks, and their graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import networkx as nx

    from proxyprune.blocks import Bypass
    from proxyprune.cost import CostModel
    from proxyprune.couple import Amendments
    from proxyprune.groups import Coupling
    from proxyprune.program import Program
    from proxyprune.rules import Options

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


@dataclass(frozen=True, slots=True)
class Block:
    """A named submodule that a scorer ranks.

    Attributes:
        id: Qualified module name ("" never occurs; loose parts get the name of their own module).
        kind: residual, attention, transformer, feedforward, resample, stem, head, conv, linear, norm, embedding or other.
        macs: Multiply-accumulates spent inside, for one run on the example inputs.
        params: Parameters inside.
        resolution: Spatial size or sequence length of the block's output, such as (16, 16) or (77,); () when it has none.
        widths: (input channels, output channels), None where there is no such axis.
        inner: Ids of the prunable channel groups that live in this block only.
        groups: Ids of all channel groups with a member in this block, pinned ones left out.
        inputs: Ids of the blocks whose output this one reads; "input" for the model's own inputs.
        removable: True when the network still runs with the block replaced by the identity.
        class_name: Name of the module's class.
    """

    id: str
    kind: str
    macs: int
    params: int
    resolution: tuple[int, ...]
    widths: tuple[int | None, int | None]
    inner: tuple[str, ...]
    groups: tuple[str, ...]
    inputs: tuple[str, ...]
    removable: bool
    class_name: str = ""

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Blocks read from; the readers are in `ModelGraph.to_networkx()`."""
        return self.inputs


@dataclass(frozen=True)
class ModelGraph:
    """One traced model: the value that every later stage reads.

    Attributes:
        blocks: In execution order.
        groups: Channel groups, prunable ones first, each in graph order.
        unsupported_ops: Ops without an axis rule; what they touch is pinned.
        uncosted_ops: Ops that may multiply and have no cost rule; their MACs are missing from `macs`.
        cost: Exact MACs and parameters for any widths.
        program: The ATen program behind it (internal, as are the rest; needed to apply a plan).
        coupling: Axis classes and rule outcomes.
        options: How norm and convolution groups may shrink.
        bypasses: Removable block -> the tensors that take the place of its results.
        amendments: What probing found out: dimensions to pin or to tie.
    """

    model_class: str
    blocks: tuple[Block, ...]
    groups: tuple[ChannelGroup, ...]
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    cost: CostModel = field(repr=False)
    program: Program = field(repr=False)
    coupling: Coupling = field(repr=False)
    options: Options
    bypasses: Mapping[str, tuple[Bypass, ...]] = field(repr=False)
    amendments: Amendments = field(repr=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run on the example inputs, attention included. FLOPs = 2 x MACs."""
        return self.cost.base_macs

    @property
    def params(self) -> int:
        """Parameters, shared ones counted once."""
        return self.cost.base_params

    @cached_property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that a plan may cut, in the order of `CostModel`'s width vector."""
        return tuple(group for group in self.groups if group.pinned is None)

    @cached_property
    def by_id(self) -> dict[str, ChannelGroup]:
        """Groups by id."""
        return {group.id: group for group in self.groups}

    @cached_property
    def block_by_id(self) -> dict[str, Block]:
        """Blocks by id."""
        return {block.id: block for block in self.blocks}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and wiring, never over weight values."""
        content = {
            "blocks": [[b.id, b.kind, b.macs, b.params, list(b.resolution), list(b.inputs)] for b in self.blocks],
            "groups": [[g.id, g.width, g.atoms, g.step, g.pinned is None, [[m.parameter, m.dim] for m in g.members]] for g in self.groups],
            "parameters": sorted((name, list(shape)) for name, shape in self.program.shapes.items()),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_networkx(self) -> nx.DiGraph[str]:
        """Directed graph of blocks; node attributes are the fields of `Block`, edges carry kind="flow" or "skip"."""
        from proxyprune.describe import to_networkx

        return to_networkx(self)

    def to_text(self) -> str:
        """Deterministic text: legend, totals, one line a block."""
        from proxyprune.describe import to_text

        return to_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Structure as plain JSON types: blocks with their inputs, channel groups, totals."""
        from proxyprune.describe import to_dict

        return to_dict(self)
