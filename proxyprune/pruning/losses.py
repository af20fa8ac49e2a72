"""Training after a cut, and the loss at each stage of pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from proxyprune.errors import MissingNeedError, ProxyPruneError
from proxyprune.measuring.held_out import Data, Recovery, held_out_loss, recovered
from proxyprune.result import Losses, PruneResult

HELD_OUT, CALIBRATION = "held-out batches", "calibration batches"


@dataclass(frozen=True)
class LossData:
    """Batches to calibrate and train on, and batches to measure on.

    Attributes:
        batches: For scorers, compensation and training.
        measured: For measuring; those of the calibration where none are held out.
        loss_fn: loss_fn(model, batch) -> scalar.
        training_loss_fn: The loss for training, if it differs.
        where: `HELD_OUT` or `CALIBRATION`.
        note: How batches were held out, if that was not the caller's choice.
    """

    batches: tuple[Any, ...] = field(repr=False)
    measured: tuple[Any, ...] = field(repr=False)
    loss_fn: Callable[[nn.Module, Any], Tensor] = field(repr=False)
    training_loss_fn: Callable[[nn.Module, Any], Tensor] | None = field(repr=False)
    where: str
    note: str | None = None

    @property
    def data(self) -> Data:
        """As `held_out_loss` and `recovered` take it."""
        return Data(self.batches, self.measured, self.loss_fn, self.training_loss_fn)


def loss_data(
    batches: Sequence[Any] | None,
    held_out: Sequence[Any] | None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    training_loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    *,
    must_hold_out: bool,
) -> LossData | None:
    """Return what a loss is measured with, or None if there is no loss or no batch.

    Args:
        batches: Calibration batches.
        held_out: Batches to measure on, or None.
        loss_fn: The loss.
        training_loss_fn: The loss for training.
        must_hold_out: Hold out the last third of the batches if no others are given.

    Raises:
        MissingNeedError: If batches have to be held out and are too few, or the loss is missing.
    """
    if must_hold_out:
        found = Data.of(batches, held_out, loss_fn, training_loss_fn)
        return LossData(tuple(found.batches), tuple(found.held_out), found.loss_fn, training_loss_fn, HELD_OUT, found.note)
    if loss_fn is None or not (batches or held_out):
        return None
    own = tuple(batches or ())
    measured, where = (tuple(held_out), HELD_OUT) if held_out else (own, CALIBRATION)
    return LossData(own, measured, loss_fn, training_loss_fn, where)


class LossMeter:
    """Measures the loss of one network after another, with the same randomness for all.

    Args:
        data: What is measured on, or None to measure nothing.
        seed: Randomness of the loss.
    """

    def __init__(self, data: LossData | None, seed: int) -> None:
        self._data = data
        self._seed = seed
        self._problem: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The reason why the loss could not be measured, or None."""
        return () if self._problem is None else (f"The loss before and after could not be measured. {self._problem}",)

    def start(self, model: nn.Module) -> Losses | None:
        """Measure the unpruned network."""
        if self._data is None:
            return None
        return Losses(self._data.where, len(self._data.measured), unpruned=self._loss(model))

    def add(self, losses: Losses | None, stage: str, model: nn.Module) -> Losses | None:
        """Measure a network at a stage: "cut", "compensated" or "recovered"."""
        if losses is None:
            return None
        changed: dict[str, Any] = {stage: self._loss(model)}
        return replace(losses, **changed)

    def _loss(self, model: nn.Module) -> float | None:
        assert self._data is not None
        try:
            value = held_out_loss(model, self._data.data, self._seed)
        except ProxyPruneError as error:  # a loss that does not run on the pruned network does not undo the cut
            self._problem = str(error)
            return None
        return value if math.isfinite(value) else None


def check_recovery(recovery: Recovery | None, loss_fn: object) -> None:
    """Raise if training was asked for and there is no loss.

    Raises:
        MissingNeedError: If there is none.
    """
    if recovery is not None and loss_fn is None:
        raise MissingNeedError(
            f"recover_steps={recovery.steps} trains the pruned network, but there is no loss. Pass loss_fn=a function (model, batch) -> "
            "scalar; in a model file, define loss(model, batch)."
        )


def with_recovery(result: PruneResult, data: LossData, recovery: Recovery, seed: int) -> PruneResult:
    """Return the result with a trained copy of its network."""
    return replace(result, model=recovered(result.model, data.data, recovery, seed))
