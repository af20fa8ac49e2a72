"""Small graphs made by hand, with the real cost model: what planning needs, without tracing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch.fx

from proxyprune import Block, ChannelGroup, CostModel, Member, ModelGraph
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.options import Options
from proxyprune.graph.polynomial import Polynomial
from proxyprune.scoring import Ranking
from proxyprune.tracing.program import Program


@dataclass(frozen=True)
class Layer:
    """A hidden width of a chain: `atoms` atoms of `channels` channels, in steps, in bins."""

    atoms: int
    channels: int = 1
    step: int = 1
    bins: int = 1


def chain(layers: Sequence[Layer], *, inputs: int = 16, outputs: int = 8) -> ModelGraph:
    """Linear layers in a row, "fc0" to "fcN"; block i owns the width between layer i and layer i + 1. MACs = sum of inputs * outputs."""
    widths = [inputs, *(layer.atoms * layer.channels for layer in layers), outputs]
    groups = tuple(_group(index, layer) for index, layer in enumerate(layers))
    blocks = tuple(
        Block(f"fc{i}", "linear", widths[i] * widths[i + 1], widths[i] * widths[i + 1], (), (widths[i], widths[i + 1]), (), (), (), False)
        for i in range(len(layers) + 1)
    )
    forms: list[tuple[int, tuple[tuple[int, int], ...]]] = [(inputs, ())]
    forms += [(0, ((index, layer.channels),)) for index, layer in enumerate(layers)]
    forms += [(outputs, ())]
    terms = [(1, (forms[index], forms[index + 1]), f"fc{index}") for index in range(len(layers) + 1)]
    shapes = {f"fc{index}.weight": (widths[index + 1], widths[index]) for index in range(len(layers) + 1)}
    return graph_of(groups, blocks, terms, shapes)


def parallel(count: int, *, atoms: int = 64, fixed: int = 16) -> ModelGraph:
    """`count` equal residual blocks "block0" ... around a stem and a head of fixed width; each can leave, or lose its inner width."""
    groups = tuple(
        ChannelGroup(
            f"block{i}.up.weight:0",
            atoms,
            1,
            (_member(f"block{i}.up.weight", 0, atoms), _member(f"block{i}.down.weight", 1, atoms)),
            None,
            atoms,
            blocks=(f"block{i}",),
        )
        for i in range(count)
    )
    cost = 2 * atoms * fixed
    inner = tuple(
        Block(f"block{i}", "residual", cost, cost, (), (fixed, fixed), (groups[i].id,), (groups[i].id,), (), True) for i in range(count)
    )
    ends = [Block(name, "linear", fixed * fixed, fixed * fixed, (), (fixed, fixed), (), (), (), False) for name in ("stem", "head")]
    terms = [(fixed, ((fixed, ()),), name) for name in ("stem", "head")]
    terms += [(2 * fixed, ((0, ((i, 1),)),), f"block{i}") for i in range(count)]  # type: ignore[misc]
    shapes = {"stem.weight": (fixed, fixed), "head.weight": (fixed, fixed)}
    shapes |= {f"block{i}.up.weight": (atoms, fixed) for i in range(count)} | {
        f"block{i}.down.weight": (fixed, atoms) for i in range(count)
    }
    return graph_of(groups, (ends[0], *inner, ends[1]), terms, shapes)


def graph_of(groups: tuple[ChannelGroup, ...], blocks: tuple[Block, ...], terms: Any, shapes: dict[str, tuple[int, ...]]) -> ModelGraph:
    """Return a graph whose parameters are counted like its MACs."""
    prunable = tuple(group for group in groups if group.pinned is None)
    polynomial = Polynomial.build(terms, len(prunable))
    full = np.array([group.atoms for group in prunable], dtype=np.int64)
    total = int(polynomial.terms(full).sum())
    cost = CostModel(
        groups=tuple(group.id for group in prunable),
        full=full,
        mac_terms=polynomial,
        param_terms=polynomial,
        weight_terms=polynomial,
        base_macs=total,
        base_params=total,
    )
    program = _with_blanks(Program, graph=torch.fx.Graph(), shapes=shapes, trainable=frozenset(shapes))
    structure = {"blocks": blocks, "groups": groups, "macs": total, "params": total, "parameter_shapes": shapes}
    coupling = _with_blanks(Coupling, registered_ops=())
    return _with_blanks(ModelGraph, model_class="Handbuilt", **structure, cost=cost, program=program, options=Options(), coupling=coupling)


def _with_blanks(kind: type[Any], **given: Any) -> Any:
    """Return a dataclass with {} for the fields that planning never reads."""
    return kind(**({item.name: {} for item in fields(kind) if item.name not in given} | given))


def ranking_of(graph: ModelGraph, scores: Sequence[float] | None = None, **fields: Any) -> Ranking:
    """Return a ranking with these scores in block order; all 0.5 when there are none."""
    values = scores if scores is not None else [0.5] * len(graph.blocks)
    return Ranking({block.id: float(score) for block, score in zip(graph.blocks, values, strict=True)}, "handmade", **fields)


def _group(index: int, layer: Layer) -> ChannelGroup:
    width = layer.atoms * layer.channels
    bins = tuple(np.repeat(np.arange(layer.bins), layer.atoms // layer.bins).tolist()) if layer.bins > 1 else None
    return ChannelGroup(
        id=f"fc{index}.weight:0",
        width=width,
        unit=layer.step * layer.channels,
        members=(
            _member(f"fc{index}.weight", 0, layer.atoms, layer.channels),
            _member(f"fc{index + 1}.weight", 1, layer.atoms, layer.channels),
        ),
        pinned=None,
        atoms=layer.atoms,
        step=layer.step,
        bins=bins,
        blocks=(f"fc{index}",),
    )


def _member(parameter: str, dim: int, atoms: int, channels: int = 1) -> Member:
    return Member(parameter, dim, np.arange(atoms * channels, dtype=np.int64).reshape(atoms, channels))
