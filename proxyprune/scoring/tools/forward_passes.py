"""Forward passes of a network over calibration batches, for scorers that watch its layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from proxyprune.errors import ScoringError
from proxyprune.scoring.contract import ScoringContext
from proxyprune.scoring.tools.calibration import Calibration, untouched
from proxyprune.support.seeds import derived_seed
from proxyprune.tracing.model_call import call_arguments, on_device_of


@dataclass(frozen=True)
class ForwardPasses:
    """Runs of the network: through the loss if there is one, because it calls the network as it must; otherwise on the batch itself.

    Attributes:
        scorer: Name of the scorer, for messages.
        model: The network.
        context: Has the batches, the loss and the seed.
    """

    scorer: str
    model: nn.Module
    context: ScoringContext

    @property
    def count(self) -> int:
        """Number of batches."""
        return len(self.context.batches or ())

    def first(self) -> None:
        """Run the first batch."""
        self._run(0)

    def all(self) -> None:
        """Run every batch."""
        for index in range(self.count):
            self._run(index)

    def _run(self, index: int) -> None:
        batches: Sequence[Any] = self.context.batches or ()
        if self.context.loss_fn is not None:
            calibration = Calibration(self.scorer, self.model, batches, self.context.loss_fn, self.context.seed)
            with calibration.untouched(index), torch.no_grad():
                calibration.finite(calibration.loss(index), index)
            return
        with untouched(self.model, derived_seed(self.context.seed, "batch", index)), torch.no_grad():
            try:
                args, kwargs = call_arguments(on_device_of(self.model, batches[index]))
                self.model(*args[: _accepted(self.model)], **kwargs)
            except Exception as error:  # whatever the user's forward raises
                raise ScoringError(
                    f"Scorer '{self.scorer}': the network raised {type(error).__name__} on batch {index}: {error}. Without a loss, batches "
                    "are what the network is called with; pass loss_fn for others."
                ) from error


def _accepted(model: nn.Module) -> int | None:
    """Return how many positional arguments a network takes, None for any number; labels often stand behind them in a batch."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
