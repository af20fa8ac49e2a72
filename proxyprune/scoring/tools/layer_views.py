"""Layers as matrix products, so that one least-squares solve serves linear layers and convolutions of any kind.

A view sees a layer as `groups` independent products y = x @ matrix^T: x is [groups, positions, features], the matrix
[groups, rows, features]. An exact view has one row for each output channel. A view by channel has one row for each output channel and tap
of the kernel, and its features are input channels: less is estimated, and the memory does not grow with the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class LayerView(Protocol):
    """One way to see the layers of a kind as matrix products."""

    @property
    def exact(self) -> bool:
        """True if a row is an output channel, so that `outputs` belong to the positions of `inputs`."""
        ...

    @property
    def input_dim(self) -> int:
        """Dimension of the weight that runs along input channels."""
        ...

    def inputs(self, module: nn.Module, value: Tensor) -> Tensor:
        """Return [groups, positions, features] for what the layer was called with."""
        ...

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """Return [groups, rows, features] for a weight."""
        ...

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return a weight in the shape of `like`, the inverse of `matrix`."""
        ...

    def outputs(self, module: nn.Module, value: Tensor) -> Tensor:
        """Return [groups, positions, channels] for the layer's output; for exact views."""
        ...

    def channel_dim(self, module: nn.Module) -> int:
        """Return the dimension of inputs and outputs that runs along channels, counted from the end."""
        ...

    def bias(self, module: nn.Module, shift: Tensor) -> Tensor:
        """Return the change of the bias, [channels], that shifts every row by `shift`, [groups, rows]."""
        ...


@dataclass(frozen=True)
class _Matrix:
    """A linear layer; the weight is [out, in], or [in, out] if `turned`."""

    turned: bool = False
    exact: bool = True

    @property
    def input_dim(self) -> int:
        return 0 if self.turned else 1

    def inputs(self, module: nn.Module, value: Tensor) -> Tensor:
        return value.reshape(1, -1, value.shape[-1])

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        return (weight.T if self.turned else weight).unsqueeze(0)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        return (matrix[0].T if self.turned else matrix[0]).contiguous()

    def outputs(self, module: nn.Module, value: Tensor) -> Tensor:
        return value.reshape(1, -1, value.shape[-1])

    def channel_dim(self, module: nn.Module) -> int:
        return -1

    def bias(self, module: nn.Module, shift: Tensor) -> Tensor:
        return shift.flatten()


@dataclass(frozen=True)
class _Unfolded:
    """A convolution over its patches; features are (input channel of the group, tap)."""

    taps: int
    exact: bool = True
    input_dim: int = 1

    def inputs(self, module: nn.Module, value: Tensor) -> Tensor:
        layer: Any = module
        spatial = len(layer.kernel_size)
        value = value.unsqueeze(0) if value.ndim == spatial + 1 else value
        value = functional.pad(value, *_padding(layer))
        for k in range(spatial):
            value = _windows(value, 2 + k, layer.kernel_size[k], layer.stride[k], layer.dilation[k])
        # [n, channels, positions..., taps...] -> [groups, n * positions, channels of the group * taps]
        count, channels = value.shape[:2]
        positions = math.prod(value.shape[2 : 2 + spatial])
        value = value.reshape(count, layer.groups, channels // layer.groups, positions, self.taps)
        return value.permute(1, 0, 3, 2, 4).reshape(layer.groups, count * positions, -1)

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        layer: Any = module
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        return matrix.reshape(like.shape)

    def outputs(self, module: nn.Module, value: Tensor) -> Tensor:
        layer: Any = module
        value = value.unsqueeze(0) if value.ndim == len(layer.kernel_size) + 1 else value
        grouped = value.reshape(value.shape[0], layer.groups, value.shape[1] // layer.groups, -1)
        return grouped.permute(1, 0, 3, 2).reshape(layer.groups, -1, grouped.shape[2])

    def channel_dim(self, module: nn.Module) -> int:
        layer: Any = module
        return -len(layer.kernel_size) - 1

    def bias(self, module: nn.Module, shift: Tensor) -> Tensor:
        return shift.flatten()


@dataclass(frozen=True)
class _ByChannel:
    """A convolution, plain or transposed, whose dropped input channels are estimated from kept ones at the same position."""

    transposed: bool
    exact: bool = False

    @property
    def input_dim(self) -> int:
        return 0 if self.transposed else 1

    def inputs(self, module: nn.Module, value: Tensor) -> Tensor:
        layer: Any = module
        value = value.unsqueeze(0) if value.ndim == len(layer.kernel_size) + 1 else value
        grouped = value.reshape(value.shape[0], layer.groups, value.shape[1] // layer.groups, -1)
        return grouped.permute(1, 0, 3, 2).reshape(layer.groups, -1, grouped.shape[2])

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        layer: Any = module
        if self.transposed:  # [in, out of the group, taps...]
            return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1).transpose(1, 2)
        rows = weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
        return rows.transpose(2, 3).flatten(1, 2)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        if self.transposed:
            return matrix.transpose(1, 2).reshape(like.shape)
        taps = math.prod(like.shape[2:])
        return matrix.reshape(like.shape[0], taps, like.shape[1]).transpose(1, 2).reshape(like.shape)

    def outputs(self, module: nn.Module, value: Tensor) -> Tensor:
        raise NotImplementedError("A view by channel has no outputs at the positions of its inputs.")

    def channel_dim(self, module: nn.Module) -> int:
        layer: Any = module
        return -len(layer.kernel_size) - 1

    def bias(self, module: nn.Module, shift: Tensor) -> Tensor:
        layer: Any = module
        taps = math.prod(layer.kernel_size)
        total = shift.reshape(-1, taps).sum(dim=1)
        return total / math.prod(layer.stride) if self.transposed else total


def view_of(module: nn.Module, largest_features: int) -> LayerView | None:
    """Return the view of a layer; None for a module of another kind.

    Args:
        module: Any module.
        largest_features: Convolutions with more features than this (input channels of a group times taps) are seen by channel.
    """
    if isinstance(module, nn.Linear):
        return _Matrix()
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers' name for a linear layer with a turned weight
        return _Matrix(turned=True)
    if isinstance(module, TRANSPOSED):
        return _ByChannel(transposed=True)
    if isinstance(module, CONVOLUTIONS):
        taps = math.prod(module.kernel_size)
        unfolded = module.in_channels // module.groups * taps <= largest_features
        return _Unfolded(taps) if unfolded else _ByChannel(transposed=False)
    return None


def _windows(value: Tensor, dim: int, size: int, stride: int, dilation: int) -> Tensor:
    """Sliding windows along a dimension; the window becomes the last dimension."""
    return value.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]


def _padding(layer: Any) -> tuple[tuple[int, ...], str]:
    """Arguments of `functional.pad` that do what the layer's forward does."""
    if isinstance(layer.padding, str):
        both = [(0, 0)] * len(layer.kernel_size)
        if layer.padding == "same":
            totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            both = [(total // 2, total - total // 2) for total in totals]
    else:
        both = [(amount, amount) for amount in layer.padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return tuple(amount for pair in reversed(both) for amount in pair), mode


Product = Callable[[Tensor, Tensor], Tensor]


def computes_its_product(module: nn.Module, view: LayerView, value: Tensor, output: Tensor) -> bool:
    """Return True if a layer's output is the product that its class stands for.

    A subclass may standardise its weight or add an adapter. Convolutions seen by channel are compared with the functional op.

    Args:
        module: The layer.
        view: Its view.
        value: What it was called with.
        output: What it returned.
    """
    layer: Any = module
    with torch.no_grad():
        if view.exact:
            product = view.inputs(module, value) @ view.matrix(module, layer.weight.detach()).transpose(1, 2)
            found = view.outputs(module, output)
            if product.shape != found.shape:
                return False
            if layer.bias is not None:
                product = product + layer.bias.detach().reshape(product.shape[0], 1, -1)
            return torch.allclose(product, found, rtol=1e-3, atol=1e-3 * float(found.abs().max()))
        kinds: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED)
        plain = next(kind for kind in kinds if isinstance(module, kind))
        return torch.allclose(plain.forward(module, value), output, rtol=1e-3, atol=1e-3 * float(output.abs().max()))
