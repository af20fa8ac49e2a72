"""Run the caller's model on calibration batches, and leave it, and all random number generators, as they were."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.errors import MissingNeedError, ProxyPruneError, ScoringError
from proxyprune.scorers.seeds import derived_seed

if TYPE_CHECKING:
    from proxyprune.scorers.base import ScoringContext


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, randomness follows from `seed` and gradients are absent; afterwards everything is as before, also after an error.

    Kept: buffers (also ones that are replaced), `.grad` of every parameter, `requires_grad`, training modes, and the generators of
    torch (CPU, and CUDA when the model is there), NumPy and Python. Not kept: parameter values, which a loss has no business to change.
    """
    with _rng(model, seed), contextlib.ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    stack.callback(_restore_buffer, module, name, buffer, buffer.detach().clone(), buffer._version)
        for parameter in model.parameters():
            stack.callback(setattr, parameter, "grad", parameter.grad)
            stack.callback(setattr, parameter, "requires_grad", parameter.requires_grad)
            parameter.grad = None
        yield


def batch_loss(context: ScoringContext, index: int, scorer: str) -> Tensor:
    """Loss of the model on one calibration batch.

    Returns:
        A scalar, still attached to the autograd graph when there is one. May be NaN or infinite.

    Raises:
        MissingNeedError: If model, batches or loss_fn are missing.
        ScoringError: If loss_fn raises, or returns something else than one real number in a tensor.
    """
    if context.model is None or context.batches is None or context.loss_fn is None:
        raise MissingNeedError(f"Scorer '{scorer}' runs the model: pass model, batches and loss_fn.")
    try:
        loss: Any = context.loss_fn(context.model, context.batches[index])
    except ProxyPruneError:
        raise
    except Exception as error:
        raise ScoringError(
            f"Scorer '{scorer}': loss_fn raised {type(error).__name__} on batch {index}: {error}. "
            "It is called as loss_fn(model, batch) and must return a scalar tensor."
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ScoringError(
            f"Scorer '{scorer}': loss_fn returned {found} on batch {index}; expected a scalar floating-point tensor. Reduce it with .mean()."
        )
    return loss.reshape(())


def finite_loss(loss: Tensor, index: int, scorer: str) -> float:
    """The loss as a number.

    Raises:
        ScoringError: If it is NaN or infinite, naming the batch.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ScoringError(
            f"Scorer '{scorer}': the loss of calibration batch {index} is {value}; expected a finite number. Look at that batch and at loss_fn."
        )
    return value


def batch_seed(context: ScoringContext, index: int) -> int:
    """Seed for one batch: the same noise every time that this batch is run, so that losses can be compared."""
    return derived_seed(context.seed, "batch", index)


@dataclass(frozen=True)
class _RngStates:
    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor] | None


@contextlib.contextmanager
def _rng(model: nn.Module, seed: int) -> Iterator[None]:
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    states = _RngStates(random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_cuda else None)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if on_cuda:
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(states.python)
        np.random.set_state(states.numpy)
        torch.set_rng_state(states.cpu)
        if states.cuda is not None:
            torch.cuda.set_rng_state_all(states.cuda)


def _restore_buffer(module: nn.Module, name: str, buffer: Tensor, values: Tensor, version: int) -> None:
    if buffer._version != version:
        with torch.no_grad():
            buffer.copy_(values)
    module._buffers[name] = buffer
