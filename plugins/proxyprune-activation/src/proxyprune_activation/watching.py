"""Run a model over calibration batches with hooks on some of its modules, and take the hooks off again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.scoring.calibration import Calibration

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def run_watched(calibration: Calibration, hooks: Iterable[tuple[nn.Module, Hook]]) -> None:
    """One forward pass over every batch; the loss is computed, because only it knows how the model is called, and thrown away."""
    with _attached(hooks):
        for index in range(len(calibration.batches)):
            with calibration.untouched(index), torch.no_grad():
                calibration.finite(calibration.loss(index), index)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in the arguments or the result of a module, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


@contextlib.contextmanager
def _attached(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
