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

from proxyprune.errors import InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.counted_layers import counted_layers, layers_gone
from proxyprune.planning.shared_widths import Tie, Ties
from proxyprune.tracing.names import is_inside

if TYPE_CHECKING:
    from proxyprune.standard.blueprint import Path
    from proxyprune.standard.reactions import Family

IndexArray = NDArray[np.int64]


def without_coincidence(ties: Ties, graph: ModelGraph, kept: IndexArray, removed: Collection[str], forced: Collection[str]) -> Ties | None:
    """Build the network of a plan from its config; return the ties without this plan if the network has other shapes.

    Args:
        ties: What a config lets the plan choose.
        graph: The traced model.
        kept: Atoms that the plan keeps, [groups].
        removed: Blocks that the plan removes.
        forced: Those of them that the request removes in any plan.

    Returns:
        The ties without this plan; None if the network has the planned shapes, or if no config decides about the plan.

    Raises:
        InputError: If the class cannot do without the forced blocks together.
    """
    family = ties.family
    if family is None:
        return None
    layers = [layer for layer in counted_layers(graph, family) if _all_in(layer.blocks, removed)] if removed else []
    gone = layers_gone(layers)
    cut = [(tie, steps) for tie in ties.ties if (steps := tie.steps_of(kept)) > 0]
    if _fits(graph, family, cut, gone):
        return None
    for count, (tie, steps) in enumerate(cut, start=1):
        if not _fits(graph, family, cut[:count], {}):
            return _without_level(ties, tie, steps)
    if not _fits(graph, family, [], gone):
        free = [layer for layer in layers if not _all_in(layer.blocks, forced)]
        if not free or not _fits(graph, family, [], layers_gone([layer for layer in layers if layer not in free])):
            names = ", ".join(f"'{block}'" for block in sorted(forced))
            raise InputError(
                f"{names} cannot be removed together with uniform='config': {family.blueprint.kind.__name__} builds another network from "
                "a config without these layers. Remove fewer of them, or use uniform='layers' and save with proxyprune.save."
            )
        return replace(ties, held=ties.held | free[0].blocks)
    return _without_level(ties, *cut[-1])


def _all_in(blocks: Collection[str], others: Collection[str]) -> bool:
    """Return True if there are blocks and every one is one of the others or lies inside one."""
    return bool(blocks) and all(any(is_inside(block, other) for other in others) for block in blocks)


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
