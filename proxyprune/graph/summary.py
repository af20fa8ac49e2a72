"""A traced network as a short summary, and the rows about channel groups that summaries of plans share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.graph.group_names import families, group_names
from proxyprune.graph.structure import Block, Structure
from proxyprune.support.checks import listed
from proxyprune.support.summary import Bar, Summary, SummaryTable
from proxyprune.support.wording import counted, quantity, share

_SHOWN = 16
"""Rows of a table; what is left over is counted in the last row."""
_NAMED = 4


def graph_summary(graph: Structure, *, ids: bool = False) -> Summary:
    """Return totals, kinds of blocks, families of channel groups, and what is not prunable.

    Args:
        graph: The traced network.
        ids: One row for each channel group, with its id instead of its name.
    """
    named = {group.id: group.id for group in graph.groups} if ids else group_names(graph)
    pinned = len(graph.groups) - len(graph.prunable)
    notes = [f"{counted(pinned, 'channel group')} pinned; proxyprune describe lists the reasons."] if pinned else []
    for what, names in (
        ("Pinned, because they have no axis rule", graph.unsupported_ops),
        ("Without a cost rule, and missing from the MACs", graph.uncosted_ops),
        ("Parameters that the example call does not reach, kept whole", graph.unreached),
    ):
        notes += [f"{what}: {listed(names, _NAMED)}."] if names else []
    return Summary(
        f"{graph.model_class}: {counted(len(graph.blocks), 'block')}, {quantity(graph.macs)} MACs, {quantity(graph.params)} parameters",
        (_kinds(graph), _groups({group.id: named[group.id] for group in graph.prunable}, graph.by_id, every=ids)),
        (*notes, *graph.notes),
    )


def widths_table(names: Mapping[str, str], widths: Mapping[str, tuple[int, int]], removed: Sequence[str], *, every: bool) -> SummaryTable:
    """Return widths before and after, and the blocks that leave.

    Args:
        names: Name of each group that is cut.
        widths: Channels before and after, by group.
        removed: Blocks that leave.
        every: One row for each group; otherwise repeated layers share a row.
    """
    found = {names[group]: [group] for group in widths} if every else families({group: names[group] for group in widths})
    rows = []
    for name, members in found.items():
        before, after = [widths[group][0] for group in members], [widths[group][1] for group in members]
        left = sum(after) / sum(before)
        rows.append((name, str(len(members)), f"{_span(before)} → {_span(after)}", f"{left:.0%}", Bar(left)))
    places = {block: [block] for block in removed} if every else families({block: block for block in removed})
    rows += [(name, str(len(blocks)), "removed", "0%", Bar(0.0)) for name, blocks in places.items()]
    return SummaryTable(("cut", "groups", "channels", "left", ""), _first(rows, every=every))


def _kinds(graph: Structure) -> SummaryTable:
    """Blocks by kind."""
    kinds: dict[str, list[Block]] = {}
    for block in graph.blocks:
        kinds.setdefault(block.kind, []).append(block)
    rows = [
        (
            kind,
            str(len(blocks)),
            share(sum(block.macs for block in blocks), graph.macs),
            share(sum(block.params for block in blocks), graph.params),
            Bar(sum(block.macs for block in blocks) / graph.macs if graph.macs else 0.0),
        )
        for kind, blocks in kinds.items()
    ]
    return SummaryTable(("blocks by kind", "number", "MACs", "parameters", ""), _first(rows))


def _groups(names: Mapping[str, str], groups: Mapping[str, ChannelGroup], *, every: bool) -> SummaryTable:
    """Prunable channel groups."""
    found = {name: [group] for group, name in names.items()} if every else families(names)
    rows = [
        (name, str(len(ids)), _span([groups[group].width for group in ids]), _span([groups[group].unit for group in ids]))
        for name, ids in found.items()
    ]
    return SummaryTable(("prunable channel groups", "number", "channels", "in steps of"), _first(rows, every=every))


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _first(rows: Sequence[tuple[str | Bar, ...]], *, every: bool = False) -> tuple[tuple[str | Bar, ...], ...]:
    """Return the first rows, and how many more there are."""
    if every or len(rows) <= _SHOWN + 1:
        return tuple(rows)
    more = tuple(Bar(0.0) if isinstance(cell, Bar) else "" for cell in rows[0][1:])
    return (*rows[:_SHOWN], (f"and {len(rows) - _SHOWN} more", *more))
