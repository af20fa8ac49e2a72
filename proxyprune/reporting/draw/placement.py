"""Places of blocks and wires in the drawing of a network: pure geometry.

Blocks run from left to right in execution order; the finer the resolution, the higher the row, so that a U-Net looks like a U and its skip
connections run level. A network with one resolution is broken into lines like text. Blocks without a resolution (embeddings of time or
class) have a row of their own on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxyprune.graph.structure import INPUT, Block, Edge
from proxyprune.reporting.read.structure_record import StructureRecord

NODE_WIDTH, NODE_HEIGHT = 40.0, 26.0
PITCH = 54.0
"""From one block to the next."""

BLOCKS_A_LINE = 18
LEFT = 92.0
"""Room for the names of the rows."""

_ROW_GAP = 34.0
_LANE = 6.0
_MOST_LANES = 9
_TOP = 16.0
_RIGHT = 20.0


@dataclass(frozen=True)
class Node:
    """A block; x and y are its middle, `index` its place in the list of blocks."""

    index: int
    x: float
    y: float


@dataclass(frozen=True)
class Wire:
    """A connection as an SVG path; kind is "flow", "skip" or "side" (from a row of embeddings to the blocks that read it)."""

    edge: Edge
    kind: str
    path: str


@dataclass(frozen=True)
class Level:
    """One row: its name, the vertical middle of its blocks, and its upper and lower edge."""

    label: str
    y: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Placement:
    """Everything placed, in pixels."""

    width: float
    height: float
    nodes: tuple[Node, ...]
    wires: tuple[Wire, ...]
    rows: tuple[Level, ...]


@dataclass(frozen=True)
class _Place:
    row: int
    column: int


def draw(structure: StructureRecord) -> Placement:
    """Place all blocks and wires of a network."""
    labels, places = _places(structure.blocks)
    skips = [edge for edge in structure.edges if edge.skip and edge.source != INPUT]
    lanes = _lanes(structure, skips, places)
    rows = _rows(labels, lanes, places, structure)
    nodes = tuple(Node(index, LEFT + (place.column + 0.5) * PITCH, rows[place.row].y) for index, place in enumerate(places))
    wires = tuple(_wires(structure, nodes, places, lanes, rows))
    columns = max((place.column for place in places), default=0) + 1
    bottom = rows[-1].bottom if rows else _TOP
    return Placement(LEFT + columns * PITCH + _RIGHT, bottom + _TOP, nodes, wires, rows)


def _places(blocks: Sequence[Block]) -> tuple[list[str], list[_Place]]:
    """Names of the rows, and row and column of each block."""
    names: dict[int, tuple[int, ...]] = {}  # 64 by 64 and a sequence of 4096 are one row, named after the more telling of the two
    for size in {block.resolution for block in blocks if block.resolution}:
        names[math.prod(size)] = max(names.get(math.prod(size), ()), size, key=lambda shape: (len(shape), shape))
    levels = sorted(names, reverse=True)
    vectors = any(not block.resolution for block in blocks)
    if len(levels) <= 1 and len(blocks) > BLOCKS_A_LINE:
        count = math.ceil(len(blocks) / BLOCKS_A_LINE)
        a_line = math.ceil(len(blocks) / count)
        labels = [f"{start + 1} to {min(start + a_line, len(blocks))}" for start in range(0, len(blocks), a_line)]
        return labels, [_Place(index // a_line, index % a_line) for index in range(len(blocks))]
    labels = ["no size"] * vectors + ["×".join(map(str, names[positions])) for positions in levels]
    row_of = {positions: row for row, positions in enumerate(levels, start=int(vectors))}
    return labels, [_Place(row_of[math.prod(b.resolution)] if b.resolution else 0, index) for index, b in enumerate(blocks)]


def _lanes(structure: StructureRecord, skips: Iterable[Edge], places: Sequence[_Place]) -> dict[Edge, int]:
    """Lane above the row for every skip within one row, short ones inside; skips between rows need none."""
    taken: dict[int, list[list[tuple[int, int]]]] = {}
    lanes: dict[Edge, int] = {}
    spans = []
    for edge in skips:
        start, stop = places[structure.order[edge.source]], places[structure.order[edge.target]]
        if start.row == stop.row:
            low, high = sorted((start.column, stop.column))
            spans.append((high - low, low, high, start.row, edge))
    for _, low, high, row, edge in sorted(spans, key=lambda span: span[:4]):
        for lane, inside in enumerate(taken.setdefault(row, [])):
            if all(high <= other_low or low >= other_high for other_low, other_high in inside):
                inside.append((low, high))
                lanes[edge] = lane
                break
        else:
            taken[row].append([(low, high)])
            lanes[edge] = len(taken[row]) - 1
    return lanes


def _rows(labels: Sequence[str], lanes: dict[Edge, int], places: Sequence[_Place], structure: StructureRecord) -> tuple[Level, ...]:
    deepest = [0] * len(labels)
    for edge, lane in lanes.items():
        row = places[structure.order[edge.source]].row
        deepest[row] = max(deepest[row], lane + 1)
    found, top = [], _TOP
    for label, depth in zip(labels, deepest, strict=True):
        y = top + _lane_room(depth) + NODE_HEIGHT / 2 + 8
        bottom = y + NODE_HEIGHT / 2 + 8
        found.append(Level(label, y, top, bottom))
        top = bottom + _ROW_GAP / 2
    return tuple(found)


def _lane_room(depth: int) -> float:
    return 6 + _LANE * min(depth, _MOST_LANES)


def _wires(
    structure: StructureRecord, nodes: Sequence[Node], places: Sequence[_Place], lanes: dict[Edge, int], rows: Sequence[Level]
) -> Iterable[Wire]:
    deepest: dict[int, int] = {}
    for edge, lane in lanes.items():
        row = places[structure.order[edge.source]].row
        deepest[row] = max(deepest.get(row, 0), lane + 1)
    for edge in structure.edges:
        target = nodes[structure.order[edge.target]]
        if edge.source == INPUT:
            yield Wire(edge, "flow", f"M{_n(target.x - NODE_WIDTH / 2 - 12)} {_n(target.y)}H{_n(target.x - NODE_WIDTH / 2)}")
            continue
        source = nodes[structure.order[edge.source]]
        row, other = places[source.index].row, places[target.index].row
        if edge in lanes:
            squeeze = min(1.0, _MOST_LANES / deepest[row])
            height = rows[row].y - NODE_HEIGHT / 2 - 8 - _LANE * squeeze * lanes[edge]
            yield Wire(edge, "skip", _arch(source, target, height))
        elif edge.skip:
            side = not structure.blocks[source.index].resolution and structure.blocks[target.index].resolution
            yield Wire(edge, "side" if side else "skip", _fall(source, target))
        elif row == other and source.x < target.x:
            yield Wire(edge, "flow", _level(source, target))
        else:
            yield Wire(edge, "flow", _bend(source, target))


def _level(source: Node, target: Node) -> str:
    """Straight to a neighbour, under the blocks between to a later one."""
    start, stop = source.x + NODE_WIDTH / 2, target.x - NODE_WIDTH / 2
    if stop - start < PITCH:
        return f"M{_n(start)} {_n(source.y)}H{_n(stop)}"
    left, right, bottom = source.x + 10, target.x - 10, source.y + NODE_HEIGHT / 2
    low = bottom + 5
    down = f"M{_n(left)} {_n(bottom)}Q{_n(left)} {_n(low)} {_n(left + 8)} {_n(low)}"
    return f"{down}H{_n(right - 8)}Q{_n(right)} {_n(low)} {_n(right)} {_n(bottom)}"


def _arch(source: Node, target: Node, height: float) -> str:
    """Up, across in a lane of its own, and down."""
    first, second = (source, target) if source.x <= target.x else (target, source)
    top = source.y - NODE_HEIGHT / 2
    radius = min(6.0, top - height, (second.x - first.x) / 2)
    left, right = first.x + 6, second.x - 6
    return (
        f"M{_n(left)} {_n(top)}V{_n(height + radius)}Q{_n(left)} {_n(height)} {_n(left + radius)} {_n(height)}"
        f"H{_n(right - radius)}Q{_n(right)} {_n(height)} {_n(right)} {_n(height + radius)}V{_n(top)}"
    )


def _bend(source: Node, target: Node) -> str:
    """Return an S from the right side of one block to the left side of another in another row."""
    x1, x2 = source.x + NODE_WIDTH / 2, target.x - NODE_WIDTH / 2
    reach = max(14.0, abs(x2 - x1) / 2) if x2 > x1 else 22.0
    if x2 > x1:
        return f"M{_n(x1)} {_n(source.y)}C{_n(x1 + reach)} {_n(source.y)} {_n(x2 - reach)} {_n(target.y)} {_n(x2)} {_n(target.y)}"
    middle = (source.y + target.y) / 2
    return (
        f"M{_n(x1)} {_n(source.y)}C{_n(x1 + 14)} {_n(source.y)} {_n(x1 + 14)} {_n(middle)} {_n(x1)} {_n(middle)}"
        f"H{_n(x2)}C{_n(x2 - 14)} {_n(middle)} {_n(x2 - 14)} {_n(target.y)} {_n(x2)} {_n(target.y)}"
    )


def _fall(source: Node, target: Node) -> str:
    """From the lower or upper side of one block to the near side of another."""
    way = 1 if target.y > source.y else -1
    y1, y2 = source.y + way * NODE_HEIGHT / 2, target.y - way * NODE_HEIGHT / 2
    middle = (y1 + y2) / 2
    return f"M{_n(source.x)} {_n(y1)}C{_n(source.x)} {_n(middle)} {_n(target.x)} {_n(middle)} {_n(target.x)} {_n(y2)}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
