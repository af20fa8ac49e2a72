"""The pruned program, predicted: the traced graph with every size argument replaced by what the plan makes of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from proxyprune.coupling.axes import LabelArray
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.outcome import CommonDivisor, Size
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.structure import ResidualPath
from proxyprune.surgery.surgery import Cut


@dataclass(frozen=True)
class Prediction:
    """Sizes of everything in the pruned program.

    Attributes:
        graph: The traced model.
        kept: For each prunable group, which atoms stay (bool).
        removed: Ids of removed blocks.
    """

    graph: ModelGraph
    kept: list[NDArray[np.bool_]] = field(repr=False)
    removed: frozenset[str]

    @staticmethod
    def unpruned_of(graph: ModelGraph) -> Prediction:
        """Predict the program with nothing cut."""
        return Prediction(graph, [np.ones(group.atoms, dtype=bool) for group in graph.prunable], frozenset())

    @property
    def unpruned(self) -> Prediction:
        """The same program with nothing cut."""
        return Prediction(self.graph, [mask | True for mask in self.kept], frozenset())

    @property
    def coupling(self) -> Coupling:
        """The coupling behind the graph."""
        return self.graph.coupling

    @cached_property
    def _sizes(self) -> dict[int, int]:
        return {}

    @cached_property
    def _counts(self) -> list[int]:
        return [int(mask.sum()) for mask in self.kept]

    def size(self, size: Size) -> int:
        """Return an integer argument after pruning."""
        if isinstance(size, int):
            return size
        if isinstance(size, CommonDivisor):
            return math.gcd(size.number, self.size(size.axis))
        if id(size) not in self._sizes:
            constant, coefficients = self.coupling.count(size)
            self._sizes[id(size)] = constant + sum(coefficient * self._counts[group] for group, coefficient in coefficients.items())
        return self._sizes[id(size)]

    def positions(self, axis: LabelArray) -> LabelArray:
        """Positions of an axis that stay."""
        return self.coupling.kept_positions(axis, self.kept)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Slices of every parameter and buffer outside the removed blocks that loses something."""
        cuts = []
        for name, axes in self.coupling.parameter_axes.items():
            if self._removed_with(name):
                continue
            for dim, axis in enumerate(axes):
                if axis is not None and self.size(axis) != len(axis):
                    kept = tuple(self.positions(axis).tolist())
                    cuts.append(Cut(name, dim, len(axis), kept))
        return tuple(cuts)

    def _removed_with(self, name: str) -> bool:
        return any(name.startswith(f"{block}.") for block in self.removed)

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Shape of a parameter or buffer after pruning."""
        sizes, axes = self.graph.program.shapes[parameter], self.coupling.parameter_axes[parameter]
        return tuple(size if axis is None else self.size(axis) for size, axis in zip(sizes, axes, strict=True))

    def output_shape(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """Shape of an op's output after pruning."""
        value = node.meta["val"]
        value = value[index] if isinstance(value, list | tuple) else value
        axes = self.coupling.outcomes[node].outputs[index]
        return tuple(int(size) if axis is None else self.size(axis) for size, axis in zip(value.shape, axes, strict=True))

    def arguments(self, node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call's arguments after pruning (nodes left as they are)."""
        args, kwargs = list(node.args), dict(node.kwargs)
        for key, size in self.coupling.outcomes[node].sizes.items():
            value: Any = [self.size(item) for item in size] if isinstance(size, tuple) else self.size(size)
            if isinstance(key, int):
                args[key] = value
            else:
                kwargs[key] = value
        return tuple(args), kwargs

    @cached_property
    def residual_paths(self) -> Mapping[str, tuple[ResidualPath, ...]]:
        """Removed blocks and the tensors that replace their results."""
        return {block: paths for block, paths in self.graph.residual_paths.items() if block in self.removed}

    def is_removed(self, node: Node) -> bool:
        """Return True for an op inside a removed block."""
        return self.is_removed_module(self.graph.program.owners[node.name])

    def is_removed_module(self, module: str) -> bool:
        """Return True for a removed block and the modules inside it."""
        return self._in(module, self.removed)

    @staticmethod
    def _in(owner: str, blocks: Collection[str]) -> bool:
        return any(owner == block or owner.startswith(f"{block}.") for block in blocks)

    def groups_at(self, node: Node) -> tuple[str, ...]:
        """Ids of the channel groups that change a size at an op."""
        outcome = self.coupling.outcomes[node]
        axes = [axis for axes in outcome.outputs for axis in axes if axis is not None]
        for sizes in outcome.sizes.values():
            followed = [size for size in (sizes if isinstance(sizes, tuple) else (sizes,)) if not isinstance(size, int)]
            axes += [size.axis if isinstance(size, CommonDivisor) else size for size in followed]
        for source in node.all_input_nodes:
            if source in self.coupling.outcomes:
                axes += [axis for axes_of in self.coupling.outcomes[source].outputs for axis in axes_of if axis is not None]
        indices = {group for axis in axes for group in self.coupling.count(axis)[1]}
        return tuple(group.id for index, group in enumerate(self.graph.prunable) if index in indices and self._counts[index] != group.atoms)
