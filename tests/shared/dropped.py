"""Prune chosen channels of a layer, whatever a scorer would say."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.applying.apply import apply
from proxyprune.result import PruneResult, make_report


def without(model: nn.Module, inputs: Tensor, layer: str, channels: Collection[int]) -> PruneResult:
    """Prune the channels of a layer's output that are named.

    Args:
        model: The network.
        inputs: Example inputs.
        layer: Name of the layer that computes the channels.
        channels: Output channels that leave, all channels of each atom among them.
    """
    graph = pp.trace(model, inputs, probe=False)
    (group, member) = next(
        (group, member)
        for group in graph.prunable
        for member in group.members
        if member.parameter == f"{layer}.weight" and member.dim == (1 if getattr(model.get_submodule(layer), "transposed", False) else 0)
    )
    kept = tuple(atom for atom in range(group.atoms) if not set(member.positions[atom].tolist()) & set(channels))
    atoms = np.array([len(kept) if other.id == group.id else other.atoms for other in graph.prunable], np.int64)
    macs, params = int(graph.cost.macs(atoms)), int(graph.cost.params(atoms))
    plan = pp.PrunePlan(
        fingerprint=graph.fingerprint,
        mode="width",
        metric="macs",
        target=macs,
        base_macs=graph.macs,
        target_macs=macs,
        macs=macs,
        base_params=graph.params,
        target_params=graph.params,
        params=params,
        kept={group.id: kept},
        widths={group.id: (group.width, len(kept) * group.atom_channels)},
    )
    applied = apply(model, plan, inputs, graph=graph)
    return PruneResult(applied.model, plan, pp.Ranking({}, "chosen"), make_report(graph, plan), applied.surgery, graph)


def noise(*shape: int, count: int = 6, seed: int = 1) -> list[Tensor]:
    """Return batches of normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
