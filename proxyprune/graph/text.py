"""A traced model as a graph and as text: what `proxyprune describe` prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.graph.group_names import group_names
from proxyprune.graph.structure import INPUT, Block, Structure, edges_of

if TYPE_CHECKING:
    import networkx as nx

SCHEMA = 1

_LEGEND = """\
# one block a line: id kind in>out @resolution (heads) MACs% params% groups <- inputs (flags)
# in>out: channels; @: spatial size or length of the output; heads: of attention; MACs% and params%: share of the whole model
# groups: channel groups inside the block as width/unit (a width shrinks in steps of its unit), shared ones named by number
# <-: blocks it reads, "prev" for the line above, lines as numbers; skip: read from further back
# removable: the network still runs without the block"""


def to_networkx(graph: Structure) -> nx.DiGraph[str]:
    """Blocks as nodes (attributes: the fields of `Block`), data flow as edges.

    An edge has kind "flow" when it comes from the reader's latest source, and "skip" when the reader also has a later one.
    """
    import networkx as nx

    result: nx.DiGraph[str] = nx.DiGraph(model=graph.model_class, macs=graph.macs, params=graph.params)
    result.add_node(INPUT, kind=INPUT)
    for block in graph.blocks:
        result.add_node(block.id, **{entry.name: getattr(block, entry.name) for entry in fields(block) if entry.name != "id"})
    for edge in edges_of(graph.blocks):
        result.add_edge(edge.source, edge.target, kind="skip" if edge.skip else "flow")
    return result


def to_text(graph: Structure) -> str:
    """Deterministic text: totals, legend, one line a block, shared channel groups."""
    numbers = {block.id: index for index, block in enumerate(graph.blocks, start=1)}
    shared = _shared_groups(graph)
    lines = [
        f"model {graph.model_class}: {len(graph.blocks)} blocks, "
        f"{graph.macs:,} MACs ({2 * graph.macs:,} FLOPs), {graph.params:,} parameters",
        f"channel groups: {len(graph.prunable)} prunable, {len(graph.groups) - len(graph.prunable)} pinned",
        _LEGEND,
    ]
    lines += [f"{numbers[block.id]} {_line(graph, block, numbers, shared)}" for block in graph.blocks]
    if shared:
        lines.append("# shared channel groups: number, width/unit, blocks that shrink together")
        for group, number in shared.items():
            entry = graph.by_id[group]
            lines.append(f"s{number} {entry.width}/{entry.unit} {_ranges(numbers[name] for name in entry.blocks)}")
    for title, names in (
        ("ops without an axis rule (pinned)", graph.unsupported_ops),
        ("ops without a cost rule", graph.uncosted_ops),
        ("parameters that the example call does not reach (whole)", graph.unreached),
    ):
        if names:
            lines.append(f"# {title}: {', '.join(names)}")
    lines += [f"# {note}" for note in graph.notes]
    return "\n".join(lines) + "\n"


def to_dict(graph: Structure) -> dict[str, Any]:
    """Structure as plain JSON types: what `describe --json` prints and a saved folder keeps as graph.json."""
    names = group_names(graph)
    return {
        "schema": SCHEMA,
        "model_class": graph.model_class,
        "fingerprint": graph.fingerprint,
        "macs": graph.macs,
        "params": graph.params,
        "blocks": [block_dict(block) for block in graph.blocks],
        "groups": [_group(group, names[group.id]) for group in graph.groups],
        "unsupported_ops": list(graph.unsupported_ops),
        "uncosted_ops": list(graph.uncosted_ops),
    } | {name: list(values) for name, values in (("unreached", graph.unreached), ("notes", graph.notes)) if values}


def block_dict(block: Block) -> dict[str, Any]:
    """One block as plain JSON types."""
    return {
        "id": block.id,
        "kind": block.kind,
        "class_name": block.class_name,
        "macs": block.macs,
        "params": block.params,
        "resolution": list(block.resolution),
        "widths": list(block.widths),
        "inputs": list(block.inputs),
        "groups": list(block.groups),
        "removable": block.removable,
    } | ({"heads": block.heads} if block.heads else {})


def _group(group: ChannelGroup, name: str) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": name,
        "width": group.width,
        "unit": group.unit,
        "pinned": group.pinned,
        "members": [[member.parameter, member.dim] for member in group.members],
        "blocks": list(group.blocks),
    }


def _shared_groups(graph: Structure) -> dict[str, int]:
    """Prunable groups with members in several blocks, numbered in graph order."""
    ids = [group.id for group in graph.prunable if len(group.blocks) > 1]
    return {group: number for number, group in enumerate(ids, start=1)}


def _line(graph: Structure, block: Block, numbers: dict[str, int], shared: dict[str, int]) -> str:
    own = [f"{graph.by_id[group].width}/{graph.by_id[group].unit}" for group in block.inner]
    common = [f"s{shared[group]}" for group in block.groups if group in shared]
    parts = [
        block.id,
        block.kind,
        ">".join("?" if width is None else str(width) for width in block.widths),
        "@" + ("x".join(str(size) for size in block.resolution) or "1"),
        *([f"heads {block.heads}"] if block.heads else []),
        f"{_share(block.macs, graph.macs)} {_share(block.params, graph.params)}",
        "[" + " ".join([*own, *common]) + "]",
        "<- " + _sources(block, numbers),
    ]
    if block.removable:
        parts.append("(removable)")
    return " ".join(parts)


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.2f}%" if percent < 10 else f"{percent:.1f}%"


def _sources(block: Block, numbers: dict[str, int]) -> str:
    own = numbers[block.id]
    latest = max((numbers.get(source, 0) for source in block.inputs), default=0)
    shown = []
    for source in block.inputs:
        number = numbers.get(source, 0)
        name = INPUT if number == 0 else "prev" if number == own - 1 else str(number)
        shown.append(name if number == latest else f"skip {name}")
    return ", ".join(shown) or "nothing"


def _ranges(numbers: Iterable[int]) -> str:
    """1,2,3,7 as "1-3 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
