"""Run a model over calibration batches with hooks on some of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.scoring import Calibration, Hook, hooked, tensors_of


def run_watched(calibration: Calibration, hooks: Iterable[tuple[nn.Module, Hook]]) -> None:
    """One forward pass over every batch; the loss is computed, because only it knows how the model is called, and thrown away."""
    with hooked(hooks):
        for index in range(len(calibration.batches)):
            with calibration.untouched(index), torch.no_grad():
                calibration.finite(calibration.loss(index), index)


def floats_of(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in the arguments or the result of a module, in order."""
    return (tensor for tensor in tensors_of(value) if tensor.is_floating_point())
