"""The block graph as a drawing: boxes coloured by rank, with what each keeps, and the wires between them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from proxyprune.graph.structure import Block
from proxyprune.reporting.draw.placement import NODE_HEIGHT, NODE_WIDTH, Node, draw
from proxyprune.reporting.draw.svg import Named, picture, rect, tag, text
from proxyprune.reporting.read.structure_record import StructureRecord
from proxyprune.support.wording import quantity

SHADES = 10
"""Steps of importance that differ in colour."""

PAGE_WIDTH = 1160.0
"""The width that fits on the page without scrolling."""

_BODY = "map-body"


@dataclass(frozen=True)
class Shades:
    """Colours for the importances of one ranking, by rank: equal parts of the blocks get equal parts of the scale.

    By value, one outlier would leave all others the same colour; the values stand in the table.

    Attributes:
        scores: All importances, rising.
    """

    scores: tuple[float, ...]

    @classmethod
    def over(cls, scores: Iterable[float]) -> Shades:
        """For the importances of a ranking."""
        return cls(tuple(sorted(scores)))

    def of(self, score: float | None) -> str:
        """CSS class of an importance; equal ones share a colour."""
        if score is None or not self.scores:
            return "s-none"
        below, up_to = bisect.bisect_left(self.scores, score), bisect.bisect_right(self.scores, score)
        return f"s{min(SHADES - 1, int(SHADES * (below + up_to) / 2 / len(self.scores)))}"

    def legend(self) -> tuple[str, ...]:
        """Every class, from the least important on."""
        return tuple(f"s{step}" for step in range(SHADES))


@dataclass(frozen=True)
class Shown:
    """The data that the map shows of a block besides its place.

    Attributes:
        score: Importance, or None.
        kept: Share of its MACs that it keeps, or None when nothing was cut.
        removed: Whether it was taken out whole.
    """

    score: float | None = None
    kept: float | None = None
    removed: bool = False


def network_map(structure: StructureRecord, shown: Mapping[str, Shown], shades: Shades) -> Markup:
    """Return the block graph: coloured by importance, with what each block keeps, numbered as in the tables below it."""
    placed = draw(structure)
    parts: list[Markup] = []
    for row in placed.rows:
        parts.append(rect(0, row.top, placed.width, row.bottom - row.top, "row-band", 6))
        parts.append(text(12, row.y + 4, row.label, "row-label"))
    parts += [tag("path", d=wire.path, class_=f"wire {wire.kind}") for wire in sorted(placed.wires, key=lambda wire: wire.kind != "side")]
    for node in placed.nodes:
        block = structure.blocks[node.index]
        parts.append(_node(block, node, shown.get(block.id, Shown()), shades))
    description = f"{len(structure.blocks)} blocks in execution order, {len(structure.edges)} connections, {structure.skips} of them skips."
    named = Named("map", f"Block graph of {structure.model_class or 'the network'}", description)
    return picture(named, placed.width, placed.height, tag("g", *parts, id=_BODY))


def overview(structure: StructureRecord) -> Markup | None:
    """Return the same map again, fitted to the page, when it is wider than that; it repeats the drawing by reference."""
    placed = draw(structure)
    if placed.width <= PAGE_WIDTH:
        return None
    named = Named("overview", "The whole network at a glance", "The block graph below, reduced to the width of the page.")
    return picture(named, placed.width, placed.height, tag("use", href=f"#{_BODY}"))


def _node(block: Block, node: Node, shown: Shown, shades: Shades) -> Markup:
    x, y, index = node.x, node.y, node.index
    left, top = x - NODE_WIDTH / 2, y - NODE_HEIGHT / 2
    colour = "removed" if shown.removed else shades.of(shown.score)
    said = [f"{index + 1}: {block.id}", block.kind, f"{quantity(block.macs)} MACs"]
    said += [] if shown.score is None else [f"importance {shown.score:.2f}"]
    said += ["removed"] if shown.removed else [] if shown.kept is None else [f"keeps {shown.kept:.0%} of its MACs"]
    parts = [
        tag("title", ", ".join(said)),
        rect(left, top, NODE_WIDTH, NODE_HEIGHT, f"node {colour}", 6),
        text(x, y + 4, str(index + 1), f"node-text on-{colour}", "middle"),
    ]
    if shown.kept is not None and not shown.removed:
        parts.append(rect(left + 3, top + NODE_HEIGHT + 2.5, NODE_WIDTH - 6, 3, "kept-track", 1.5))
        parts.append(rect(left + 3, top + NODE_HEIGHT + 2.5, (NODE_WIDTH - 6) * min(1.0, shown.kept), 3, "kept", 1.5))
    return tag("a", *parts, href=f"#block-{index + 1}")
