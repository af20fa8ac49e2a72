"""Second moments of the inputs of layers, summed over calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.scoring.tools.hooks import Hook, hooked
from proxyprune.scoring.tools.layer_views import LayerView, computes_its_product
from proxyprune.support.nested import tensors_of

POSITIONS = 4096
"""Positions of one call of a layer that count at most; of more, every n-th is taken."""


@dataclass(frozen=True)
class WatchedLayer:
    """A layer whose inputs are summed.

    Attributes:
        name: Qualified module name.
        module: The layer.
        view: The layer as matrix products.
    """

    name: str
    module: nn.Module = field(repr=False)
    view: LayerView = field(repr=False)

    @property
    def matrix(self) -> Tensor:
        """Its weight, [groups, rows, features], float64."""
        weight: Tensor = self.module.get_parameter("weight")
        return self.view.matrix(self.module, weight.detach()).double()

    @property
    def has_bias(self) -> bool:
        """True if a shift of its output costs nothing."""
        return isinstance(getattr(self.module, "bias", None), nn.Parameter)


@dataclass
class InputMoments:
    """Weighted sums over positions, float64.

    Attributes:
        gram: Sum of w x x^T, [groups, features, features].
        total: Sum of w x, [groups, features].
        weight: Sum of w.
    """

    gram: Tensor
    total: Tensor
    weight: float = 0.0

    @classmethod
    def zeros(cls, groups: int, features: int, device: torch.device) -> InputMoments:
        """No positions yet."""
        return cls(
            torch.zeros(groups, features, features, dtype=torch.float64, device=device),
            torch.zeros(groups, features, dtype=torch.float64, device=device),
        )

    def add(self, features: Tensor, weights: Tensor | None) -> None:
        """Add positions, [groups, positions, features], with one weight each."""
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        weighted = x if weights is None else x * weights.to(x.dtype).reshape(1, -1, 1)
        self.gram += weighted.transpose(1, 2) @ x
        self.total += weighted.sum(dim=1)
        self.weight += float(x.shape[1]) if weights is None else float(weights.double().sum())

    def centred(self) -> Tensor:
        """Gram matrix around the mean."""
        return self.gram - torch.einsum("gf,gh->gfh", self.total, self.total) / max(self.weight, 1e-300)


def bytes_of(layer: WatchedLayer) -> int:
    """Memory of the moments of a layer."""
    groups, _, features = layer.matrix.shape
    return 8 * groups * features * (features + 1)


def usable(layers: Iterable[WatchedLayer], run: Callable[[], None]) -> tuple[WatchedLayer, ...]:
    """Return the layers that are called in a run and compute their product, in the order of their first calls.

    Args:
        layers: Candidates.
        run: Runs the network on one batch.
    """
    layers = tuple(layers)
    called: dict[str, bool] = {}

    def watch(layer: WatchedLayer) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = first_tensor((args, tuple(kwargs.values())))
            fits = value is not None and isinstance(output, Tensor) and computes_its_product(module, layer.view, value, output)
            called[layer.name] = called.get(layer.name, True) and fits

        return hook

    with hooked((layer.module, watch(layer)) for layer in layers):
        run()
    by_name = {layer.name: layer for layer in layers}
    return tuple(by_name[name] for name, fits in called.items() if fits)


def input_moments(layers: Sequence[WatchedLayer], run_all: Callable[[], None]) -> dict[str, InputMoments]:
    """Sum the moments of several layers while a network runs.

    Positions of linear layers are weighted by the inverse of the squared norm of the output, with mean 1 in each call: a few positions
    with huge activations would decide otherwise.

    Args:
        layers: From `usable`.
        run_all: Runs the network on all batches.
    """
    found: dict[str, InputMoments] = {}

    def watch(layer: WatchedLayer) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = first_tensor((args, tuple(kwargs.values())))
            if value is None or not value.numel():
                return
            features = layer.view.inputs(module, value.detach())
            linear = layer.view.exact and not hasattr(module, "kernel_size")
            weights = inverse_square_norms(output) if linear else None
            every = -(-features.shape[1] // POSITIONS)
            features = features[:, ::every]
            weights = None if weights is None else weights[::every]
            if layer.name not in found:
                found[layer.name] = InputMoments.zeros(features.shape[0], features.shape[2], features.device)
            found[layer.name].add(features, weights)

        return hook

    with hooked((layer.module, watch(layer)) for layer in layers):
        run_all()
    return found


def first_tensor(value: Any) -> Tensor | None:
    """Return the first floating-point tensor in nested containers."""
    return next((tensor for tensor in tensors_of(value) if tensor.is_floating_point()), None)


def inverse_square_norms(output: Tensor) -> Tensor:
    """Return the inverse squared norm of an output at each position, with mean 1.

    A norm that follows makes all positions alike in size; without the weights a few huge ones would decide the fit.
    """
    squares = output.detach().flatten(0, -2).float().square().sum(dim=-1)
    inverse = 1.0 / (squares + 1e-6 * squares.mean() + torch.finfo(torch.float32).tiny)
    return inverse / inverse.mean()
