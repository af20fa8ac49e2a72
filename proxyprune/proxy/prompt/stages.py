"""Stages of a large network: groups of blocks that fit a prompt, found from the module names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.structure import Block
from proxyprune.proxy.prompt.block_list import figures, share

_STRANGERS = 3
"""Groups with nothing in common in their names are merged up to the capacity divided by this."""


@dataclass(frozen=True)
class Stage:
    """Neighbouring blocks that are judged together.

    Attributes:
        key: Name inside the program, "stage 0" and so on; what a prompt shows is a label.
        blocks: In the order of execution.
        place: Place among the stages, from 1.
    """

    key: str
    blocks: tuple[Block, ...]
    place: int

    def line(
        self, graph: ModelGraph, count: int, labels: Mapping[str, str], measured: Mapping[str, Mapping[str, float]], time: str = ""
    ) -> str:
        """Return the stage in one line, without its label.

        Args:
            graph: The whole network.
            count: Number of stages.
            labels: Stage label of every block.
            measured: z-scores by statistic, then by block.
            time: Its share of the time of a run; empty shows none.
        """
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(block.kind for block in self.blocks).most_common(4))
        macs, params = sum(block.macs for block in self.blocks), sum(block.params for block in self.blocks)
        first, last = self.blocks[0].widths[0], self.blocks[-1].widths[1]
        parts = [f"at {self.place}/{count}", f"{len(self.blocks)} blocks ({kinds})"]
        if first is not None and last is not None:
            parts.append(f"{first}>{last}")
        if resolutions := list(dict.fromkeys("x".join(map(str, block.resolution)) for block in self.blocks if block.resolution)):
            parts.append("@" + ("..".join((resolutions[0], resolutions[-1])) if len(resolutions) > 1 else resolutions[0]))
        shown = f" time {time}" if time else ""
        parts.append(f"MACs {share(macs, graph.macs)} params {share(params, graph.params)}{shown} reads {self._reads(labels)}")
        tail = [f"{removable} removable"] if (removable := sum(block.removable for block in self.blocks)) else []
        if measured:
            tail.append(f"measured {figures({name: self._mean(values) for name, values in measured.items()})}")
        return "; ".join([" ".join(parts), *tail])

    def _reads(self, labels: Mapping[str, str]) -> str:
        own = {block.id for block in self.blocks}
        outside = (labels.get(source, "input") for block in self.blocks for source in block.inputs if source not in own)
        return ", ".join(dict.fromkeys(outside)) or "nothing"

    def _mean(self, values: Mapping[str, float]) -> float:
        return sum(values[block.id] for block in self.blocks) / len(self.blocks)


def stages_of(graph: ModelGraph, capacity: float, weight: Callable[[Block], float]) -> tuple[Stage, ...]:
    """Split a network into stages of at most `capacity`, along its module names where they help.

    Args:
        graph: The network.
        capacity: Most that the weights of a stage's blocks may add up to; a single block may weigh more.
        weight: Weight of a block.
    """
    groups = _split(graph.blocks, 0, capacity, weight)
    return tuple(Stage(f"stage {index}", tuple(group), index + 1) for index, group in enumerate(groups))


def _split(blocks: Sequence[Block], depth: int, capacity: float, weight: Callable[[Block], float]) -> list[list[Block]]:
    """Return groups that fit; siblings are put together again as far as they fit, strangers only where they are small."""
    if sum(map(weight, blocks)) <= capacity or len(blocks) == 1:
        return [list(blocks)]
    if all(block.id.count(".") < depth for block in blocks):
        return list(_cut(blocks, capacity, weight))
    runs = _runs(blocks, depth)
    if len(runs) == 1:
        return _split(blocks, depth + 1, capacity, weight)
    parts = [part for run in runs for part in _split(run, depth + 1, capacity, weight)]
    return _merged(parts, capacity if depth else capacity / _STRANGERS, weight)


def _runs(blocks: Sequence[Block], depth: int) -> list[list[Block]]:
    """Neighbours whose names agree up to a depth; a stage stays contiguous in the order of execution."""
    runs: list[list[Block]] = []
    previous: list[str] | None = None
    for block in blocks:
        prefix = block.id.split(".")[: depth + 1]
        if prefix == previous:
            runs[-1].append(block)
        else:
            runs.append([block])
        previous = prefix
    return runs


def _cut(blocks: Sequence[Block], capacity: float, weight: Callable[[Block], float]) -> Iterator[list[Block]]:
    """Pieces of about equal weight, for blocks whose names say nothing more."""
    pieces = max(2, -int(-sum(map(weight, blocks)) // capacity))
    size = -(-len(blocks) // pieces)
    for start in range(0, len(blocks), size):
        yield list(blocks[start : start + size])


def _merged(groups: list[list[Block]], limit: float, weight: Callable[[Block], float]) -> list[list[Block]]:
    """Neighbouring groups that are small together become one: a stem and an embedding are no stages."""
    merged: list[list[Block]] = []
    for group in groups:
        if merged and sum(map(weight, (*merged[-1], *group))) <= limit:
            merged[-1] += group
        else:
            merged.append(list(group))
    return merged
