"""The part of accelerate's Accelerator that is used here; accelerate itself ships no types."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@runtime_checkable
class Accelerator(Protocol):
    """The processes, the device and the precision of a run.

    Attributes:
        ddp_handler: Settings of DistributedDataParallel, or None.
    """

    ddp_handler: Any

    @property
    def device(self) -> torch.device:
        """Device of this process."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""

    @property
    def process_index(self) -> int:
        """Number of this process."""

    @property
    def is_main_process(self) -> bool:
        """True if this process writes files."""

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Gradient scaler of fp16, or None."""

    def wait_for_everyone(self) -> None:
        """Wait until all processes are here."""

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's precision inside."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Wrap a network for several processes and mixed precision."""

    def prepare_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Wrap an optimizer for the gradient scaler."""

    def free_memory(self) -> Any:
        """Release everything that was prepared."""

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, scaled if there is a scaler."""

    def clip_grad_norm_(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor | None:
        """Unscale and clip gradients, and return their norm."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """Combine a tensor of all processes."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate a tensor of all processes."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """Send values to the trackers."""

    def end_training(self) -> None:
        """Close the trackers."""
