"""Mean square and variance of the channels of each group, where layers read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from proxyprune.coupling.groups import ChannelGroup, Member
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.tools.hooks import Hook, hooked
from proxyprune.scoring.tools.layer_views import LayerView, view_of
from proxyprune.support.nested import tensors_of

FloatArray = NDArray[np.float64]

_ANY_SIZE = 1  # the axes of a view do not depend on its size


@dataclass(frozen=True)
class ChannelMoments:
    """Moments of one group.

    Attributes:
        mean_square: Over all positions of all batches, mean over the layers that read the group and over the channels of an atom, [atoms].
        variance: The same for the square of the distance from a channel's mean, [atoms].
    """

    mean_square: FloatArray
    variance: FloatArray


@dataclass
class _Sums:
    """Sums over the positions of one activation, [channels]."""

    total: Tensor | None = None
    squares: Tensor | None = None
    positions: int = 0

    def add(self, value: Tensor, dim: int) -> None:
        channels = value.detach().movedim(dim, -1).flatten(0, -2).double()
        self.total = channels.sum(dim=0) + (0.0 if self.total is None else self.total)
        self.squares = channels.square().sum(dim=0) + (0.0 if self.squares is None else self.squares)
        self.positions += len(channels)

    @property
    def moments(self) -> tuple[FloatArray, FloatArray] | None:
        """Mean square and variance, [channels]."""
        if self.total is None or self.squares is None or not self.positions:
            return None
        mean, square = (sums.cpu().numpy() / self.positions for sums in (self.total, self.squares))
        return square, np.maximum(square - mean**2, 0.0)


@dataclass(frozen=True)
class _Layer:
    """A layer whose weight some group cuts, with the sums of its input and of its output."""

    weight: str
    module: nn.Module
    view: LayerView
    read: _Sums = field(default_factory=_Sums)
    made: _Sums = field(default_factory=_Sums)

    @property
    def hook(self) -> Hook:
        """Add what one call reads and makes."""
        dim = self.view.channel_dim(self.module)

        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = next((tensor for tensor in tensors_of((args, tuple(kwargs.values()))) if tensor.is_floating_point()), None)
            if value is not None and value.ndim >= -dim and value.ndim > 1:
                self.read.add(value, dim)
            if isinstance(output, Tensor) and output.ndim >= -dim and output.ndim > 1:
                self.made.add(output, dim)

        return add

    def along(self, member: Member) -> tuple[FloatArray, FloatArray] | None:
        """Return the moments along the dimension of a member; None if its positions are not those of the activation's channels."""
        sums = self.read if member.dim == self.view.input_dim else self.made
        size = self.module.get_parameter("weight").shape[member.dim]
        moments = sums.moments
        return moments if moments is not None and len(moments[0]) == size else None


def channel_moments(graph: ModelGraph, model: nn.Module, run_all: Callable[[], None]) -> dict[str, ChannelMoments]:
    """Watch the layers while a network runs.

    A group that no linear layer or convolution reads gets the moments of the outputs that make it; a group without either gets zeros.

    Args:
        graph: Trace of the model.
        model: The traced model.
        run_all: Runs it on all batches.
    """
    layers = {layer.weight: layer for layer in _layers(graph, model)}
    with hooked((layer.module, layer.hook) for layer in layers.values()):
        run_all()
    return {group.id: _moments(group, layers) for group in graph.prunable}


def _layers(graph: ModelGraph, model: nn.Module) -> Iterator[_Layer]:
    cut = {member.parameter for group in graph.prunable for member in group.members}
    for name, module in model.named_modules():
        view, weight = view_of(module, _ANY_SIZE), f"{name}.weight".lstrip(".")
        if view is not None and weight in cut:
            yield _Layer(weight, module, view)


def _moments(group: ChannelGroup, layers: dict[str, _Layer]) -> ChannelMoments:
    found: dict[bool, list[tuple[FloatArray, FloatArray]]] = {True: [], False: []}
    for member in group.members:
        layer = layers.get(member.parameter)
        moments = None if layer is None else layer.along(member)
        if layer is not None and moments is not None:
            square, variance = (values[member.positions].mean(axis=1) for values in moments)
            found[member.dim == layer.view.input_dim].append((square, variance))
    pairs = found[True] or found[False] or [(np.zeros(group.atoms), np.zeros(group.atoms))]
    square, variance = (np.asarray(np.mean(values, axis=0), dtype=np.float64) for values in zip(*pairs, strict=True))
    return ChannelMoments(square, variance)


def root_mean_squares(moments: dict[str, ChannelMoments]) -> dict[str, FloatArray]:
    """Return the root mean square of each atom by group."""
    return {group: np.sqrt(found.mean_square) for group, found in moments.items()}
