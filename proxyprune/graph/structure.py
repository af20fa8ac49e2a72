"""Blocks, and the structure of a network as plain values: what text and reports are made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from proxyprune.coupling.groups import ChannelGroup

if TYPE_CHECKING:
    from torch.fx import Node

INPUT = "input"
"""Stands for the model's own inputs among the inputs of a block."""


@dataclass(frozen=True)
class ResidualPath:
    """One result of a removable block, and the tensor that its residual path carries and that takes its place."""

    source: Node
    result: Node


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
        heads: Attention heads inside, 0 if there are none or they cannot be read off.
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
    heads: int = 0

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Blocks read from; the readers are in `ModelGraph.to_networkx()`."""
        return self.inputs


@dataclass(frozen=True)
class Edge:
    """Data that flows from one block to another.

    Attributes:
        source: Block that is read, or "input".
        target: Block that reads.
        skip: True when the reader also reads something later.
    """

    source: str
    target: str
    skip: bool


def edges_of(blocks: Sequence[Block]) -> tuple[Edge, ...]:
    """Return the edges between blocks, by reader in execution order.

    Args:
        blocks: In execution order; what they read is among them, or "input".
    """
    order = {INPUT: -1} | {block.id: index for index, block in enumerate(blocks)}
    found: list[Edge] = []
    for block in blocks:
        latest = max((order[source] for source in block.inputs), default=-1)
        found += [Edge(source, block.id, order[source] != latest) for source in block.inputs]
    return tuple(found)


@dataclass(frozen=True)
class Structure:
    """Structure and cost of a network: all that its text, a report or a plot needs.

    Attributes:
        model_class: Name of the network's class.
        blocks: In execution order.
        groups: Channel groups, prunable ones first, each in graph order.
        unsupported_ops: Ops without an axis rule; what they touch is pinned.
        uncosted_ops: Ops that may multiply and have no cost rule; their MACs are missing from `macs`.
        macs: Multiply-accumulates of one run on the example inputs, attention included. FLOPs = 2 x MACs.
        params: Parameters, shared ones counted once.
        parameter_shapes: Shape of every parameter and buffer, by its name in the state dict.
        unreached: Parameters that the example call does not reach; they stay whole.
        notes: Sentences for the reader, such as what the cost depends on.
        first_reading: The blocks as the first release read their kind and size; fingerprints and recorded prompts follow them. Empty if
            they are `blocks`.
    """

    model_class: str
    blocks: tuple[Block, ...]
    groups: tuple[ChannelGroup, ...]
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    macs: int
    params: int
    parameter_shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    unreached: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    notes: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    first_reading: tuple[Block, ...] = field(default=(), repr=False, kw_only=True)

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
            "blocks": [[b.id, b.kind, b.macs, b.params, list(b.resolution), list(b.inputs)] for b in self.first_reading or self.blocks],
            "groups": [[g.id, g.width, g.atoms, g.step, g.pinned is None, [[m.parameter, m.dim] for m in g.members]] for g in self.groups],
            "parameters": sorted((name, list(shape)) for name, shape in self.parameter_shapes.items()),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
