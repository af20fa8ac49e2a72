"""Layers that compute their weight (weight standardisation, spectral normalisation, parametrisations), made plain ones.

A mean, a variance or a spectral norm over all inputs of a layer changes when inputs leave, and with it the weights that are kept. Such a
layer keeps its inputs, and so does everything that it reads. A plain layer with the computed weight gives the same outputs and can be
cut on both sides. It is not the same layer in training: its weight is no longer computed anew after each step.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_PRODUCTS = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})
_LONGER = (1, 2, 5)
"""Entries by which the inputs of the check are longer than the kernel: with strides, odd and even ones differ."""

_SEED = 0
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PlainWeights:
    """A network whose layers have their weights as parameters.

    Attributes:
        model: The network.
        layers: Names of the layers that were replaced.
        kept: Names of layers that compute their weight and stayed, with the reason.
    """

    model: nn.Module
    layers: tuple[str, ...]
    kept: Mapping[str, str]


def plain_weights(model: nn.Module, layers: str = "*", *, inplace: bool = False) -> PlainWeights:
    """Replace linear and convolutional layers that compute their weight by plain ones with the weight that they compute.

    Outputs in evaluation mode stay the same up to rounding. In training, the weights of the new layers are ordinary parameters: they are
    no longer standardised or normalised after each step. To load a pruned network, build the unpruned one in the same way:
    `pp.load(folder, lambda: pp.plain_weights(build()).model)`.

    Args:
        model: Any network.
        layers: Pattern of the names of the layers to replace; `*` matches everything.
        inplace: Replace in `model` itself. Networks with the hooks of `torch.nn.utils.weight_norm` cannot be copied.

    Returns:
        The network, the names of the layers that were replaced, and those that stayed with the reason.
    """
    result = model if inplace else copy.deepcopy(model)
    holders = Counter(id(tensor) for _, tensor in result.named_parameters(remove_duplicate=False))
    places: dict[_Layer, list[str]] = {}
    for name, module in result.named_modules(remove_duplicate=False):
        if isinstance(module, _Layer) and name and fnmatchcase(name, layers):
            places.setdefault(module, []).append(name)
    done: list[str] = []
    kept: dict[str, str] = {}
    for module, (first, *others) in places.items():
        weight = _computed_weight(module)
        if weight is None:
            continue
        if any(holders[id(parameter)] > 1 + len(others) for parameter in module.parameters()):
            kept[first] = "shares a parameter with another layer"
        elif (plain := _plain_layer(module, weight)) is None:
            kept[first] = "does more with its input than a plain layer, such as padding that depends on its size"
        else:
            for name in (first, *others):
                result.set_submodule(name, plain)
            done.append(first)
    return PlainWeights(result, tuple(done), kept)


def _computed_weight(layer: _Layer) -> Tensor | None:
    """Return the weight that a layer multiplies by; None if that is its parameter, or if it takes more than one input."""
    seen = _SeenWeights()
    with _evaluated(layer):
        try:
            with seen:
                layer(_input(layer, _LONGER[0]))
        except (RuntimeError, TypeError, ValueError):  # a forward with further arguments
            return None
    (weight,) = seen.weights if len(seen.weights) == 1 else (None,)
    return None if weight is None or any(weight is parameter for parameter in layer.parameters()) else weight


class _SeenWeights(TorchFunctionMode):
    """Note the second factor of linear layers and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one function."""
        if func in _PRODUCTS:
            self.weights.append(args[1] if len(args) > 1 else kwargs["weight"])
        return func(*args, **(kwargs or {}))


@contextmanager
def _evaluated(layer: nn.Module) -> Iterator[None]:
    """Run a layer in evaluation mode, without gradients."""
    training = {module: module.training for module in layer.modules()}
    layer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _input(layer: _Layer, longer: int) -> Tensor:
    """Return random numbers that a layer takes, drawn from a fixed seed."""
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (2, layer.in_features)
    else:
        reach = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape = (2, int(layer.in_channels), *(entries + longer for entries in reach))
    like = next(layer.parameters())
    return torch.randn(shape, generator=torch.Generator().manual_seed(_SEED)).to(like)


def _plain_layer(layer: _Layer, weight: Tensor) -> _Layer | None:
    """Return a plain layer with a weight; None if its outputs are not those of the layer."""
    bias = getattr(layer, "bias", None)
    made: dict[str, Any] = {"bias": bias is not None, "device": "meta"}  # without initial values, which would be drawn
    if isinstance(layer, nn.Linear):
        plain: _Layer = nn.Linear(layer.in_features, layer.out_features, **made)
    else:
        made |= {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
        kind: Any = next(kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, kind))
        plain = kind(layer.in_channels, layer.out_channels, layer.kernel_size, **made)
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if isinstance(bias, Tensor):
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    plain.train(layer.training)
    return plain if all(_agree(layer, plain, _input(layer, longer)) for longer in _LONGER) else None


def _agree(layer: _Layer, plain: _Layer, x: Tensor) -> bool:
    with _evaluated(layer), _evaluated(plain):
        expected, found = layer(x), plain(x)
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE)
