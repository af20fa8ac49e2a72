"""A copy of a model without its weights: same classes and attributes, empty tensors.

On the meta device a forward costs only its Python and shape arithmetic. Meta tensors cannot be combined with tensors of other devices.
For a model that mixes devices (a tensor made on the CPU in forward, say), FakeTensorMode keeps every tensor's device at a higher cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from proxyprune.tracing.module_state import copied, held_tensors
from proxyprune.tracing.torch_logs import without_log_of_failures


@dataclass(frozen=True)
class EmptyTensors:
    """A way to make tensors without data: on the meta device, or as fake tensors of a mode."""

    mode: FakeTensorMode | None

    @staticmethod
    def meta() -> EmptyTensors:
        """Put every tensor on the meta device."""
        return EmptyTensors(None)

    @staticmethod
    def fake() -> EmptyTensors:
        """Keep the device of every tensor, under a new FakeTensorMode."""
        return EmptyTensors(FakeTensorMode(allow_non_fake_inputs=True))

    def device(self, device: torch.device) -> torch.device:
        """Return the device that stands for `device`."""
        return torch.device("meta") if self.mode is None else device

    def like(self, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return an empty tensor like another one, optionally of another shape."""
        shape = tuple(tensor.shape) if shape is None else shape
        with self.mode or contextlib.nullcontext():
            return torch.empty(shape, dtype=tensor.dtype, device=self.device(tensor.device))

    @contextlib.contextmanager
    def by_default(self) -> Iterator[None]:
        """Make the tensors that code inside creates empty, too."""
        with torch.device("meta") if self.mode is None else self.mode, without_log_of_failures():
            yield


def skeleton(model: nn.Module, empty: EmptyTensors, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """Copy a model with every tensor in it (parameters, buffers, plain attributes) replaced by an empty one.

    `shapes` gives parameters and buffers (by their first name) another shape on the way.
    """
    memo: dict[int, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        memo[id(tensor)] = _like(tensor, empty, (shapes or {}).get(name))
    for tensor in held_tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = _like(tensor, empty)
    return copied(model, memo, share_uncopyable=True, detached=True)


def _like(tensor: Tensor, empty: EmptyTensors, shape: tuple[int, ...] | None = None) -> Tensor:
    result = empty.like(tensor, shape)
    # without requires_grad, as in the predicted program: matmul decomposes differently for tensors that need a gradient
    return nn.Parameter(result, requires_grad=False) if isinstance(tensor, nn.Parameter) else result


def empty_inputs(value: Any, empty: EmptyTensors) -> Any:
    """Return nested example inputs with every tensor replaced by an empty one."""
    if isinstance(value, FakeTensor) and empty.mode is not None and value.fake_mode is empty.mode:
        return value
    if isinstance(value, Tensor):
        return empty.like(value)
    if isinstance(value, Mapping):
        return {key: empty_inputs(item, empty) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(empty_inputs(item, empty) for item in value)
    return value
