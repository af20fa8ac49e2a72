"""The worth of a pruned network: its loss on held-out batches, right away or after a short recovery, and always the same way."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from proxyprune.errors import InputError, MissingNeedError, ProxyPruneError, ScoringError
from proxyprune.scoring.contract import LossFunction
from proxyprune.scoring.tools.calibration import seeded, untouched
from proxyprune.support.checks import is_count
from proxyprune.support.seeds import derived_seed
from proxyprune.tracing.capture import evaluation
from proxyprune.tracing.module_state import copied, unchanged

HELD_OUT_SHARE = 1 / 3
"""Share of the calibration batches that is held out when nothing else is given; at least one batch."""


@dataclass(frozen=True)
class Recovery:
    """A short fine-tuning after a cut: AdamW at a constant rate with the gradient clipped, over the calibration batches in random order.

    Attributes:
        steps: Number of updates; 0 measures right after the cut.
        learning_rate: AdamW's.
    """

    steps: int = 0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if not is_count(self.steps):
            raise InputError(f"Expected recovery steps to be a whole number from 0 up, found {self.steps!r}.")
        if not math.isfinite(self.learning_rate) or self.learning_rate <= 0.0:
            raise InputError(f"Expected a learning rate above 0, found {self.learning_rate!r}.")


class DataKeywords(TypedDict, total=False):
    """Keyword arguments that say what a network is measured with.

    Attributes:
        batches: Calibration batches, for scorers and for recovery.
        loss_fn: loss_fn(model, batch) -> scalar.
        held_out: Batches to judge by; without them the last third of `batches` is held out.
        training_loss_fn: The loss for recovery, if it differs from `loss_fn`.
    """

    batches: Sequence[Any] | None
    loss_fn: Callable[[nn.Module, Any], Tensor] | None
    held_out: Sequence[Any] | None
    training_loss_fn: Callable[[nn.Module, Any], Tensor] | None


@dataclass(frozen=True)
class Data:
    """Batches to learn from, batches to judge by, and the loss.

    Attributes:
        batches: For scorers and for recovery.
        held_out: For measuring; no scorer and no recovery sees them.
        loss_fn: loss_fn(model, batch) -> scalar.
        training_loss_fn: The loss for recovery, where that is another one (fresh noise at every step); None takes `loss_fn`.
        note: How the batches were held out, when that was not the caller's choice.
    """

    batches: Sequence[Any] = field(repr=False)
    held_out: Sequence[Any] = field(repr=False)
    loss_fn: LossFunction = field(repr=False)
    training_loss_fn: LossFunction | None = field(default=None, repr=False)
    note: str | None = None

    @classmethod
    def of(
        cls,
        batches: Sequence[Any] | None = None,
        held_out: Sequence[Any] | None = None,
        loss_fn: LossFunction | None = None,
        training_loss_fn: LossFunction | None = None,
    ) -> Data:
        """Return what the caller gave, with the last third of the batches held out when no others are.

        Raises:
            MissingNeedError: If batches or the loss are missing, or there are too few to hold any out.
        """
        if not batches or loss_fn is None:
            missing = "batches" if not batches else "loss_fn"
            raise MissingNeedError(
                f"Measuring pruned networks needs calibration batches and a loss, but got no {missing}. Pass batches=[...] and "
                "loss_fn=a function (model, batch) -> scalar; in a model file, define calibration_batches() and loss(model, batch)."
            )
        batches = tuple(batches)
        if held_out:
            return cls(batches, tuple(held_out), loss_fn, training_loss_fn)
        count = max(1, round(len(batches) * HELD_OUT_SHARE))
        if len(batches) < 2:
            raise MissingNeedError(
                "Measuring needs batches that no scorer has used, and one calibration batch cannot be split. Give at least two, or "
                "held_out=[...]; in a model file, define validation_batches()."
            )
        note = f"The last {count} of {len(batches)} calibration batches were held out for measuring; no others were given."
        return cls(batches[:-count], batches[-count:], loss_fn, training_loss_fn, note)


def weights_digest(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers: measurements hold for these weights only."""
    return data_digest(model.state_dict())


def data_digest(value: Any) -> str:
    """Return a hash of all tensors in nested containers, in order; what is neither a tensor nor a container counts by its type only."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key}\n".encode())
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}\n".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(f"{value!r}\n".encode() if isinstance(value, str | int | float | bool | None) else type(value).__name__.encode())


def held_out_loss(model: nn.Module, data: Data, seed: int) -> float:
    """Mean loss over the held-out batches, in evaluation mode; the model and all generators stay as they are.

    Returns:
        The mean; infinity when any batch gives no finite number.
    """
    losses = held_out_losses(model, data, seed)
    return statistics.fmean(losses) if all(map(math.isfinite, losses)) else math.inf


def held_out_losses(model: nn.Module, data: Data, seed: int) -> tuple[float, ...]:
    """Loss of each held-out batch, in evaluation mode; the model and all generators stay as they are.

    Randomness in the loss depends on the seed and the batch only, so the losses of two networks can be compared batch by batch.
    """
    losses = []
    with unchanged(model), evaluation(model):
        for index, batch in enumerate(data.held_out):
            with untouched(model, derived_seed(seed, "held out", index)), torch.no_grad():
                losses.append(float(_loss(data.loss_fn, model, batch, f"held-out batch {index}").detach()))
    return tuple(losses)


@dataclass(frozen=True)
class PairedDifference:
    """Losses of one network minus those of another on the same batches.

    Attributes:
        mean: Mean over the batches; below 0 the first network is better.
        standard_error: Of the mean; None with fewer than two batches.
        batches: Number of batches.
    """

    mean: float
    standard_error: float | None
    batches: int

    @classmethod
    def of(cls, losses: Sequence[float], others: Sequence[float]) -> PairedDifference:
        """Compare two networks batch by batch."""
        differences = [loss - other for loss, other in zip(losses, others, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
        return cls(statistics.fmean(differences), error, len(differences))


def recovered(model: nn.Module, data: Data, recovery: Recovery, seed: int) -> nn.Module:
    """Return a copy of a model after a recovery; the same copy for the same seed, and the model itself stays as it is."""
    model = copied(model, {})
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    loss_fn = data.training_loss_fn or data.loss_fn
    with seeded(model, derived_seed(seed, "recovery")), torch.inference_mode(mode=False), torch.enable_grad():
        model.train()
        model.requires_grad_(True)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.is_floating_point()], lr=recovery.learning_rate)
        for step, index in enumerate(_order(recovery.steps, len(data.batches), seed)):
            optimizer.zero_grad()
            loss = _loss(loss_fn, model, data.batches[index], f"calibration batch {index} in recovery step {step}")
            if not torch.isfinite(loss):
                break  # lost; measuring will say so
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.zero_grad(set_to_none=True)
    for parameter in frozen:
        parameter.requires_grad_(False)
    for module, mode in modes:
        module.training = mode
    return model


def _order(steps: int, count: int, seed: int) -> list[int]:
    """Return indices of the batches, every batch once before any comes again."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "recovery order"))
    order: list[int] = []
    while len(order) < steps:
        order += torch.randperm(count, generator=generator).tolist()
    return order[:steps]


def _loss(loss_fn: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any, where: str) -> Tensor:
    try:
        loss = loss_fn(model, batch)
    except ProxyPruneError:
        raise
    except Exception as error:
        raise ScoringError(
            f"loss_fn raised {type(error).__name__} on {where}: {error}. It is called as loss_fn(model, batch) and must return a scalar "
            "tensor."
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ScoringError(f"loss_fn returned {found} on {where}; expected a scalar floating-point tensor. Reduce it with .mean().")
    return loss.reshape(())
