"""A channel group as torch-pruning's criteria expect it: layers, pruning functions and indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from proxyprune.coupling.groups import ChannelGroup, Member


@dataclass(frozen=True)
class Counterpart:
    """A channel group of ours as one of torch-pruning.

    Attributes:
        group: A `torch_pruning.dependency.Group`.
        channels: Entries of an importance vector for each atom.
    """

    group: Any
    channels: int


def group_of(group: ChannelGroup, model: nn.Module) -> Counterpart | None:
    """Build the counterpart of a group; None if it holds no layer that torch-pruning prunes.

    Entry `atom * channels + channel` of an importance vector belongs to that atom. `channels` is the fewest that a layer of the group has
    for each atom: the length of the vector is that of the first layer that a criterion scores. Layers with more are spread evenly.

    Args:
        group: The group.
        model: The traced model.
    """
    import torch_pruning
    from torch_pruning.dependency import Dependency, Node

    entries = [(member, layer, function) for member in group.members for layer, function in _pruned_by(member, model)]
    if not entries:
        return None
    channels = min(member.positions.shape[1] for member, _, _ in entries)
    root = Node(entries[0][1], None, entries[0][0].parameter)
    counterpart = torch_pruning.dependency.Group()
    for place, (member, layer, function) in enumerate(entries):
        positions, roots = _indices(member, channels)
        node = Node(layer, None, member.parameter)
        counterpart.add_dep(Dependency(entries[0][2], function, root, node), positions)
        counterpart[place].root_idxs = roots
    return Counterpart(counterpart, channels)


def atom_values(values: Tensor, group: ChannelGroup, channels: int) -> Tensor:
    """Mean over the channels of each atom, [atoms], of a criterion's importance vector; float64 on the CPU."""
    wanted = group.atoms * channels
    found = values.detach().double().cpu()
    return found[:wanted].reshape(group.atoms, channels).mean(dim=1)


def _pruned_by(member: Member, model: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Yield the layer of a weight and the function by which torch-pruning cuts this dimension of it, if there is one."""
    from torch_pruning import function, ops

    owner, _, leaf = member.parameter.rpartition(".")
    if leaf != "weight":
        return
    layer = model.get_submodule(owner)
    makes = member.dim == (1 if getattr(layer, "transposed", False) else 0)
    by_kind = {
        ops.OPTYPE.CONV: function.prune_conv_out_channels if makes else function.prune_conv_in_channels,
        ops.OPTYPE.LINEAR: function.prune_linear_out_channels if makes else function.prune_linear_in_channels,
        ops.OPTYPE.DEPTHWISE_CONV: function.prune_depthwise_conv_out_channels,
        ops.OPTYPE.BN: function.prune_batchnorm_out_channels,
        ops.OPTYPE.LN: function.prune_layernorm_out_channels,
        ops.OPTYPE.GN: function.prune_groupnorm_out_channels,
        ops.OPTYPE.IN: function.prune_instancenorm_out_channels,
    }
    kind = ops.module2type(layer)
    if kind in by_kind:
        yield layer, by_kind[kind]


def _indices(member: Member, channels: int) -> tuple[list[int], list[int]]:
    """Return indices along the member's dimension, ascending, and the entry of the importance vector that each belongs to."""
    atoms, count = member.positions.shape
    spread: NDArray[np.int64] = np.arange(count) * channels // count
    roots = np.arange(atoms)[:, None] * channels + spread[None]
    order = np.argsort(member.positions, axis=None, kind="stable")  # some criteria sort the indices, and not what belongs to them
    return member.positions.ravel()[order].tolist(), roots.ravel()[order].tolist()
