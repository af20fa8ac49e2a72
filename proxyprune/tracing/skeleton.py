"""A copy of a model without its weights: same classes and attributes, empty tensors.

On the meta device a forward costs only its Python and shape arithmetic. Where a model mixes devices on its way (a tensor made on the CPU in
forward, say), meta tensors do not work together with others; FakeTensorMode then keeps every tensor's own device at a higher price.
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


@dataclass(frozen=True)
class Ghost:
    """How empty tensors are made: on the meta device, or as fake tensors of a mode."""

    mode: FakeTensorMode | None

    @staticmethod
    def meta() -> Ghost:
        """Everything on the meta device."""
        return Ghost(None)

    @staticmethod
    def fake() -> Ghost:
        """Everything keeps its device, under a new FakeTensorMode."""
        return Ghost(FakeTensorMode(allow_non_fake_inputs=True))

    def device(self, device: torch.device) -> torch.device:
        """Where a tensor of `device` is placed."""
        return torch.device("meta") if self.mode is None else device

    def empty(self, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """An empty tensor like another one, optionally of another shape."""
        shape = tuple(tensor.shape) if shape is None else shape
        with self.running():
            return torch.empty(shape, dtype=tensor.dtype, device=self.device(tensor.device))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, new tensors are empty too."""
        with torch.device("meta") if self.mode is None else self.mode:
            yield


def skeleton(model: nn.Module, ghost: Ghost, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """Copy a model with every tensor in it (parameters, buffers, plain attributes) replaced by an empty one.

    `shapes` gives parameters and buffers (by their first name) another shape on the way.
    """
    memo: dict[int, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        memo[id(tensor)] = _like(tensor, ghost, (shapes or {}).get(name))
    for tensor in held_tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = _like(tensor, ghost)
    return copied(model, memo, share_uncopyable=True)


def _like(tensor: Tensor, ghost: Ghost, shape: tuple[int, ...] | None = None) -> Tensor:
    empty = ghost.empty(tensor, shape)
    # without requires_grad, as in the predicted program: matmul decomposes differently for tensors that need a gradient
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def empty_inputs(value: Any, ghost: Ghost) -> Any:
    """Nested example inputs with every tensor replaced by an empty one."""
    if isinstance(value, FakeTensor) and ghost.mode is not None and value.fake_mode is ghost.mode:
        return value
    if isinstance(value, Tensor):
        return ghost.empty(value)
    if isinstance(value, Mapping):
        return {key: empty_inputs(item, ghost) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(empty_inputs(item, ghost) for item in value)
    return value
