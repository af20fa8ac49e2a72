"""Attributes of torch.nn layers that state a size: one small function a layer family.

Layers outside torch.nn are not listed; what their forward reads is found by `follow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from proxyprune.surgery.surgery import AttributeChange

Attributes = dict[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class PrunedLayer:
    """A layer, with what is known about it after pruning.

    Attributes:
        module: The unpruned layer.
        shapes: Parameter or buffer (local name) -> shape after pruning.
        arguments: Argument of the layer's own op -> predicted value (groups, num_groups, normalized_shape).
        channels: Channels of the layer's input after pruning, or None.
    """

    module: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    arguments: Mapping[str, Any]
    channels: int | None


def linear(layer: PrunedLayer) -> Attributes:
    """in_features, out_features."""
    out, into = layer.shapes["weight"]
    return {"in_features": into, "out_features": out}


def convolution(layer: PrunedLayer) -> Attributes:
    """in_channels, out_channels, groups."""
    groups = int(layer.arguments.get("groups", layer.module.groups))
    long, short = layer.shapes["weight"][:2]
    into, out = (long, short * groups) if isinstance(layer.module, _ConvTransposeNd) else (short * groups, long)
    return {"in_channels": into, "out_channels": out, "groups": groups}


def batch_norm(layer: PrunedLayer) -> Attributes:
    """num_features."""
    known = layer.shapes.get("weight") or layer.shapes.get("running_mean")
    size = known[0] if known else layer.channels
    attributes: Attributes = {}
    if size is not None:
        attributes["num_features"] = size
    return attributes


def group_norm(layer: PrunedLayer) -> Attributes:
    """num_channels, num_groups."""
    groups = layer.arguments.get("num_groups", layer.module.num_groups)
    size = layer.shapes["weight"][0] if "weight" in layer.shapes else layer.channels
    attributes: Attributes = {"num_groups": int(groups)}
    if size is not None:
        attributes["num_channels"] = size
    return attributes


def layer_norm(layer: PrunedLayer) -> Attributes:
    """normalized_shape, with or without weights."""
    shape = layer.arguments.get("normalized_shape") or layer.shapes.get("weight")
    return {} if shape is None else {"normalized_shape": tuple(int(size) for size in shape)}


def embedding(layer: PrunedLayer) -> Attributes:
    """num_embeddings, embedding_dim."""
    entries, width = layer.shapes["weight"]
    return {"num_embeddings": entries, "embedding_dim": width}


def prelu(layer: PrunedLayer) -> Attributes:
    """num_parameters."""
    return {"num_parameters": layer.shapes["weight"][0]}


_GATES = {"LSTM": 4, "GRU": 3}
"""Mode of a recurrent layer -> gates stacked in the rows of a weight; a plain RNN has one."""


def recurrent(layer: PrunedLayer) -> Attributes:
    """input_size, hidden_size, and proj_size of an LSTM whose state is projected."""
    if "weight_ih_l0" not in layer.shapes:
        return {}
    rows, into = layer.shapes["weight_ih_l0"]
    attributes: Attributes = {"input_size": into, "hidden_size": rows // _GATES.get(str(layer.module.mode), 1)}
    if "weight_hr_l0" in layer.shapes:
        attributes["proj_size"] = layer.shapes["weight_hr_l0"][0]
    return attributes


def recurrent_cell(layer: PrunedLayer) -> Attributes:
    """input_size, hidden_size."""
    return {"input_size": layer.shapes["weight_ih"][1], "hidden_size": layer.shapes["weight_hh"][1]} if "weight_ih" in layer.shapes else {}


TABLE: dict[type[nn.Module], Callable[[PrunedLayer], Attributes]] = {
    nn.Linear: linear,
    _ConvNd: convolution,
    _NormBase: batch_norm,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.Embedding: embedding,
    nn.PReLU: prelu,
    nn.RNNBase: recurrent,
    nn.RNNCellBase: recurrent_cell,
}


def changed_attributes(name: str, layer: PrunedLayer) -> Iterator[AttributeChange]:
    """Yield what the size attributes of a torch.nn layer become; nothing for other modules."""
    parametrized = isinstance(layer.module, nn.Linear | _ConvNd | nn.Embedding | nn.PReLU) and "weight" not in layer.shapes
    for kind, rule in TABLE.items():
        if isinstance(layer.module, kind) and not parametrized:  # a weight that is computed (weight norm, a mask) states no size
            for attribute, after in rule(layer).items():
                before = getattr(layer.module, attribute, after)
                plain = tuple(before) if isinstance(before, tuple | list) else before
                if plain != after:
                    yield AttributeChange(name, (attribute,), plain, after)
            return
