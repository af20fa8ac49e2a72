"""The structure of a network in a result file, of this version or an earlier one: what is missing has a default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from proxyprune.graph.structure import INPUT, Block, Edge, edges_of
from proxyprune.reporting.read.json_fields import Fields, fail, is_stored_count


@dataclass(frozen=True)
class GroupRecord:
    """One channel group.

    Attributes:
        id: Its id in plans.
        width: Channels.
        unit: Steps in which the width can change.
        pinned: Why it cannot, or None.
        name: Its block and role; "" if the file is of an earlier version.
    """

    id: str
    width: int
    unit: int
    pinned: str | None
    name: str = ""


@dataclass(frozen=True)
class StructureRecord:
    """A traced network.

    Attributes:
        model_class: Name of its class, "" when the file does not say.
        fingerprint: Hash of names, shapes and wiring, "" when the file does not say.
        blocks: In execution order.
        groups: Channel groups; empty when the file does not list them.
        unsupported_ops: Ops without an axis rule.
        uncosted_ops: Ops without a cost rule.
    """

    model_class: str
    fingerprint: str
    blocks: tuple[Block, ...]
    groups: tuple[GroupRecord, ...] = field(default=())
    unsupported_ops: tuple[str, ...] = ()
    uncosted_ops: tuple[str, ...] = ()

    @cached_property
    def order(self) -> Mapping[str, int]:
        """Place of every block, from 0; the model's input stands at -1."""
        return {INPUT: -1} | {block.id: index for index, block in enumerate(self.blocks)}

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Edges between blocks; a block that is called again may read itself, which is left out."""
        return tuple(edge for edge in edges_of(self.blocks) if edge.source != edge.target)

    @property
    def skips(self) -> int:
        """Skip connections between blocks; what an embedding without a resolution feeds is none."""
        sizes = {block.id: block.resolution for block in self.blocks}
        return sum(edge.skip and bool(sizes.get(edge.source)) for edge in self.edges)

    @property
    def macs(self) -> int:
        """Of all blocks together."""
        return sum(block.macs for block in self.blocks)

    @classmethod
    def read(cls, data: Fields) -> StructureRecord:
        """From graph.json, `describe --json` or `score --json`.

        Raises:
            ResultFileError: If it is malformed.
        """
        blocks = tuple(_block(entry) for entry in data.objects("blocks"))
        known = {INPUT} | {block.id for block in blocks}
        if len(known) != len(blocks) + 1:
            fail(data.where, f"its {len(blocks)} blocks do not have names of their own")
        for block in blocks:
            if unknown := [name for name in block.inputs if name not in known]:
                fail(data.where, f"block '{block.id[:80]}' reads '{unknown[0][:80]}', which is missing")
        return cls(
            model_class=data.text("model_class", ""),
            fingerprint=data.text("fingerprint", ""),
            blocks=blocks,
            groups=tuple(_group(entry) for entry in data.objects("groups")),
            unsupported_ops=data.texts("unsupported_ops"),
            uncosted_ops=data.texts("uncosted_ops"),
        )


def _block(data: Fields) -> Block:
    resolution, widths = data.items("resolution"), data.items("widths")
    if not all(is_stored_count(size) for size in resolution):
        fail(data.where, f"the resolution must hold whole numbers, found {str(resolution)[:60]}")
    if not all(width is None or is_stored_count(width) for width in widths):
        fail(data.where, f"the widths must be whole numbers or null, found {str(widths)[:60]}")
    return Block(
        id=data.text("id"),
        kind=data.text("kind", "other"),
        class_name=data.text("class_name", ""),
        macs=data.count("macs", 0),
        params=data.count("params", 0),
        resolution=resolution,
        widths=(widths[0], widths[1]) if len(widths) == 2 else (None, None),
        inner=(),  # files do not say
        groups=data.texts("groups"),
        inputs=tuple(dict.fromkeys(data.texts("inputs"))),
        removable=data.flag("removable"),
    )


def _group(data: Fields) -> GroupRecord:
    return GroupRecord(data.text("id"), data.count("width"), data.count("unit", 1), data.optional_text("pinned"), data.text("name", ""))
