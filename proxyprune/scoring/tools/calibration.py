"""Run the caller's model on calibration batches, and leave it, and all random number generators, as they were."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.errors import MissingNeedError, ProxyPruneError, ScoringError
from proxyprune.scoring.contract import LossFunction, Scorer, ScoringContext, model_given
from proxyprune.support.seeds import derived_seed


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, randomness follows from `seed` and gradients are absent; afterwards everything is as before, also after an error.

    Kept: buffers (also ones that are replaced), `.grad` of every parameter, `requires_grad`, training modes, and the generators of
    torch (CPU, and CUDA when the model is there), NumPy and Python. Not kept: parameter values, which a loss has no business to change.
    """
    with seeded(model, seed), contextlib.ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    stack.callback(_restore_buffer, module, name, buffer, buffer.detach().clone())
        for parameter in model.parameters():
            stack.callback(setattr, parameter, "grad", parameter.grad)
            stack.callback(setattr, parameter, "requires_grad", parameter.requires_grad)
            parameter.grad = None
        yield


@dataclass(frozen=True)
class Calibration:
    """The data that losses need, all of it present.

    Attributes:
        scorer: Name of the scorer that runs the model, for messages.
        model: The caller's model, in the caller's mode.
        batches: Calibration batches, at least one.
        loss_fn: Scalar loss of the model on one batch.
        seed: The caller's seed.
    """

    scorer: str
    model: nn.Module
    batches: Sequence[Any]
    loss_fn: LossFunction
    seed: int

    @classmethod
    def of(cls, scorer: Scorer, context: ScoringContext) -> Calibration:
        """Return what `context` holds for a scorer.

        Raises:
            MissingNeedError: If something is missing.
        """
        model = model_given(scorer, context)
        if not context.batches or context.loss_fn is None:
            raise MissingNeedError(f"Scorer '{scorer.name}' computes losses but does not declare it: add 'loss' to its needs.")
        return cls(scorer.name, model, context.batches, context.loss_fn, context.seed)

    def untouched(self, index: int) -> AbstractContextManager[None]:
        """`untouched` with a seed for one batch: the same noise whenever that batch is run, so that losses can be compared."""
        return untouched(self.model, derived_seed(self.seed, "batch", index))

    def loss(self, index: int) -> Tensor:
        """Loss of the model on one batch.

        Returns:
            A scalar, attached to the autograd graph when there is one. May be NaN or infinite.

        Raises:
            ScoringError: If loss_fn raises, or returns something else than one real number in a tensor.
        """
        try:
            loss: Any = self.loss_fn(self.model, self.batches[index])
        except ProxyPruneError:
            raise
        except Exception as error:
            raise ScoringError(
                f"Scorer '{self.scorer}': loss_fn raised {type(error).__name__} on batch {index}: {error}. "
                "It is called as loss_fn(model, batch) and must return a scalar tensor."
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ScoringError(
                f"Scorer '{self.scorer}': loss_fn returned {found} on batch {index}; expected a scalar floating-point tensor. "
                "Reduce it with .mean()."
            )
        return loss.reshape(())

    def finite(self, loss: Tensor, index: int) -> float:
        """Return a loss as a number.

        Raises:
            ScoringError: If it is NaN or infinite, naming the batch.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ScoringError(
                f"Scorer '{self.scorer}': the loss of calibration batch {index} is {value}; expected a finite number. "
                "Look at that batch and at loss_fn."
            )
        return value


@dataclass(frozen=True)
class _RngStates:
    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor] | None


@contextlib.contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, the generators of torch, NumPy and Python start from `seed`; afterwards they are as before, also after an error.

    The generators of CUDA are among them when the model is there.
    """
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    states = _RngStates(
        random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_cuda else None
    )
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


def _restore_buffer(module: nn.Module, name: str, buffer: Tensor, values: Tensor) -> None:
    # Compared by value: batch norm writes its running statistics without counting up the tensor's version.
    if not torch.equal(buffer, values):
        with torch.no_grad():
            buffer.copy_(values)
    module._buffers[name] = buffer
