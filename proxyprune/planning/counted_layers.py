"""Layers that a config counts, as blocks that a plan may remove together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyprune.graph.model_graph import ModelGraph

if TYPE_CHECKING:
    from proxyprune.standard.blueprint import Path
    from proxyprune.standard.reactions import Family


@dataclass(frozen=True)
class CountedLayer:
    """A layer that a number of the config counts.

    Attributes:
        path: The number.
        index: Index of the layer.
        blocks: Its blocks, which leave together.
        obstacle: Why it cannot leave, or "".
    """

    path: Path
    index: int
    blocks: frozenset[str]
    obstacle: str = ""


def counted_layers(graph: ModelGraph, family: Family) -> Iterator[CountedLayer]:
    """Yield the layers that a config counts; where it counts several lists at once, a layer has a part in each."""
    from proxyprune.standard.blueprint import written  # imports torch, which other plans do without
    from proxyprune.standard.layers import layers_that_can_leave

    can_leave = layers_that_can_leave(family)
    for path, reaction in family.layer_counts.items():
        if path not in can_leave:
            continue
        for index in range(next(iter(reaction.lists.values()))):
            parts = [f"{family.blueprint.prefix}{container}.{index}" for container in reaction.lists]
            blocks = [block for block in graph.blocks if any(block.id == part or block.id.startswith(f"{part}.") for part in parts)]
            parameters = [name for name in graph.parameter_shapes if name.startswith(tuple(f"{part}." for part in parts))]
            covered = all(any(name.startswith(f"{block.id}.") for block in blocks) for name in parameters)
            stuck = [block.id for block in blocks if not block.removable]
            obstacle = ""
            if not blocks or not covered or stuck:
                where = f"'{stuck[0]}'" if stuck else f"a part of '{parts[0]}'"
                obstacle = f"{written(path)} counts whole layers, and {where} cannot be skipped"
            elif index not in can_leave[path]:
                obstacle = f"{written(path)} without '{parts[0]}' makes the class build other layers differently"
            yield CountedLayer(path, index, frozenset(block.id for block in blocks), obstacle)


def layers_gone(layers: Collection[CountedLayer]) -> Mapping[Path, list[int]]:
    """Return the indices of layers, by the number that counts them."""
    gone: dict[Path, list[int]] = {}
    for layer in layers:
        gone.setdefault(layer.path, []).append(layer.index)
    return gone
