"""The config that a uniform plan needs, and the check that its class builds the planned network from it.

Numbers that move freely one by one can meet: where two levels of a U-Net get equal widths, its class leaves out the projection between
them. Such a combination is found by building the class without data, and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.counted_layers import counted_layers, layers_gone
from proxyprune.planning.shared_widths import Tie, Ties

if TYPE_CHECKING:
    from proxyprune.standard.blueprint import Path
    from proxyprune.standard.reactions import Family

IndexArray = NDArray[np.int64]


def without_coincidence(ties: Ties, graph: ModelGraph, kept: IndexArray, removed: Collection[str]) -> Ties | None:
    """Build the network of a plan from its config; None if it has the planned shapes, otherwise the ties without this plan.

    Args:
        ties: What a config lets the plan choose.
        graph: The traced model.
        kept: Atoms that the plan keeps, [groups].
        removed: Blocks that the plan removes.
    """
    family = ties.family
    if family is None:
        return None
    layers = [layer for layer in counted_layers(graph, family) if layer.blocks and layer.blocks <= set(removed)] if removed else []
    gone = layers_gone(layers)
    cut = [(tie, steps) for tie in ties.ties if (steps := tie.steps_of(kept)) > 0]
    if _fits(graph, family, cut, gone):
        return None
    for count, (tie, steps) in enumerate(cut, start=1):
        if not _fits(graph, family, cut[:count], {}):
            return _without_level(ties, tie, steps)
    if not _fits(graph, family, [], gone):
        return replace(ties, held=ties.held | layers[0].blocks)
    return _without_level(ties, *cut[-1])


def _without_level(ties: Ties, tie: Tie, steps: int) -> Ties:
    fewer = replace(tie, counts=tie.counts[tie.steps != steps])
    return replace(ties, ties=tuple(fewer if other is tie else other for other in ties.ties))


def _fits(graph: ModelGraph, family: Family, cut: Collection[tuple[Tie, int]], gone: Mapping[Path, list[int]]) -> bool:
    """Return True if the class builds the network with these ties cut and these layers gone, with the predicted shapes."""
    from proxyprune.standard.blueprint import shapes_of  # imports torch, which other plans do without
    from proxyprune.standard.layers import followed, same_shapes, without_layers
    from proxyprune.standard.sizes import Sizes

    values = {path: value for count, indices in gone.items() for path, value in followed(family, count, indices).items()}
    containers = [(container, indices) for path, indices in gone.items() for container in family.reactions[path].lists]
    atoms: dict[int, int] = {}
    for tie, steps in cut:
        assert tie.knob is not None
        values |= {path: family.reactions[path].value - fall * steps for path, fall in tie.knob.numbers.items()}
        atoms |= {group: count * steps for group, count in tie.knob.atoms.items()}
    built = family.blueprint.with_values(values).try_build()
    expected = Sizes.of(family, graph.coupling, graph.program).without(atoms)
    return built is not None and same_shapes(family, shapes_of(built), without_layers(expected, containers))
