"""Turn whatever a network does into sums of non-negative flows, by answering its calls of torch functions differently.

The module code runs as it is; only what would bend or normalise a flow is replaced, so that the output is linear in every layer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Replacement = Callable[..., Any]


def _norm(value: Tensor, weight: Tensor | None, dim: int) -> Tensor:
    """Return a norm without its bend: scaled by a constant to root mean square 1, then by its gain. The bias carries no flow."""
    scale = value.detach().square().mean().sqrt().clamp_min(torch.finfo(value.dtype).tiny)
    scaled = value / scale
    if weight is None:
        return scaled
    shape = [1] * value.ndim
    for offset, size in enumerate(weight.shape):
        shape[dim + offset if dim >= 0 else value.ndim - weight.ndim + offset] = size
    return scaled * weight.reshape(shape)


def _batch_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return _norm(input, weight, 1)


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return _norm(input, weight, 1)


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    return _norm(input, weight, 1)


def _layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    return _norm(input, weight, -1)


def _unbent(input: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return an activation function: what is not negative passes."""
    return input


def _uniform(input: Tensor, *_: Any, dim: int | None = None, **__: Any) -> Tensor:
    """Return a softmax that looks everywhere alike."""
    axis = dim if dim is not None else next((value for value in _ if isinstance(value, int)), -1)
    return torch.full_like(input, 1.0 / input.shape[axis])


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention that looks everywhere alike: the mean value, for every query."""
    if query.shape[-3] != value.shape[-3] and query.ndim > 3:  # grouped-query attention
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    mean = value.mean(dim=-2, keepdim=True)
    return mean.expand(*mean.shape[:-2], query.shape[-2], mean.shape[-1])


def _weighted(function: Replacement) -> Replacement:
    """Return a linear map: its input made non-negative (timestep embeddings have negative parts), its bias left out."""

    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Any:
        return function(input.to(weight.dtype).abs(), weight, None, *rest, **options)

    return call


_ACTIVATIONS = (
    *(F.relu, F.relu6, F.leaky_relu, F.prelu, F.rrelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish),
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.hardtanh),
)
_LINEAR = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

REPLACEMENTS: Mapping[Any, Replacement] = {
    **dict.fromkeys(_ACTIVATIONS, _unbent),
    **{function: _weighted(function) for function in _LINEAR},
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _uniform),
    F.scaled_dot_product_attention: _attention,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _layer_norm,
}
"""Function that a module calls -> what is done in its place."""


class LinearFlow(TorchFunctionMode):
    """Inside, the functions in `REPLACEMENTS` are replaced."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Answer one call."""
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))
