"""Block influence: one minus the cosine similarity of a block's input and output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxyprune.errors import MissingNeedError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import ScoringContext
from proxyprune.scoring.tools.calibration import Calibration
from proxyprune.scoring.tools.hooks import Hook, hooked, module_of
from proxyprune.scoring.tools.scale import half_saturation
from proxyprune.support.nested import tensors_of

REMOVAL_NOTE = "Whole blocks leave by block influence, measured on the same batches: channel scores do not add up to that of a block."
"""Note of a ranking whose removal scores are block influences."""


class BlockInfluence:
    """Mean of 1 - cos between input and output of every block, over all positions that pass through it.

    At each position (pixel or token) the vector of channels before the block is compared with the one after it.

    Args:
        graph: Trace of the model.
        model: The traced model, which is run inside `measured`.
    """

    def __init__(self, graph: ModelGraph, model: nn.Module) -> None:
        self._modules = {block.id: module_of(model, block.id) for block in graph.blocks}
        self._meters = {block: _Meter() for block in self._modules}

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure every forward pass inside the `with`."""
        with hooked([(module, self._meters[block].hook) for block, module in self._modules.items()]):
            yield

    @property
    def values(self) -> dict[str, float | None]:
        """Influence in [0, 2] by block id; None for a block whose output has another shape than all of its inputs."""
        return {block: meter.influence for block, meter in self._meters.items()}

    @property
    def scores(self) -> dict[str, float]:
        """Influence by block id, brought to [0, 1) by `half_saturation`; 0.5 where it was not measured."""
        return half_saturation(self.values)

    @property
    def changes(self) -> dict[str, float | None]:
        """Mean of |output - input|**2 / |output|**2 by block id: what a residual block adds, as a share of the stream after it."""
        return {block: meter.change for block, meter in self._meters.items()}


def influence_scores(graph: ModelGraph, scorer: str, context: ScoringContext) -> dict[str, float]:
    """Block influence on the batches of a context, in one forward pass over them, brought to [0, 1).

    Args:
        graph: Trace of the model.
        scorer: Name of the scorer that it is measured for, for messages.
        context: Holds the model, batches and a loss.

    Raises:
        MissingNeedError: If one of these is missing.
        ScoringError: If the loss raises, or is not finite.
    """
    if context.model is None or not context.batches or context.loss_fn is None:
        raise MissingNeedError(f"Block influence for scorer '{scorer}' needs model, batches and loss_fn; at least one is missing.")
    calibration = Calibration(scorer, context.model, context.batches, context.loss_fn, context.seed)
    influence = BlockInfluence(graph, context.model)
    with influence.measured():
        for index in range(len(calibration.batches)):
            with calibration.untouched(index), torch.no_grad():
                calibration.finite(calibration.loss(index), index)
    return influence.scores


class _Meter:
    """Means over all positions that passed through one block: of 1 - cos, and of the relative size of the change."""

    def __init__(self) -> None:
        self._total = 0.0
        self._change = 0.0
        self._positions = 0

    @property
    def influence(self) -> float | None:
        return max(0.0, self._total / self._positions) if self._positions else None

    @property
    def change(self) -> float | None:
        return self._change / self._positions if self._positions else None

    @property
    def hook(self) -> Hook:
        def measure(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            after = next(_floats_of(output), None)
            if after is None:
                return
            before = next((value for value in _floats_of((*args, *kwargs.values())) if value.shape == after.shape), None)
            if before is not None:
                old, new = _positions(before.detach()), _positions(after.detach())
                cosine = functional.cosine_similarity(old, new, dim=1)
                self._total += float((1.0 - cosine.double()).sum())
                size = new.float().square().sum(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
                self._change += float(((new - old).float().square().sum(dim=1) / size).double().sum())
                self._positions += cosine.numel()

        return measure


def _floats_of(value: Any) -> Iterator[Tensor]:
    return (tensor for tensor in tensors_of(value) if tensor.is_floating_point())


def _positions(value: Tensor) -> Tensor:
    """[positions, channels]: channels are dimension 1 of a feature map [n, c, h, w] and the last one of tokens [n, t, c]."""
    return (value.movedim(1, -1) if value.ndim > 3 else value).reshape(-1, value.shape[1 if value.ndim > 3 else -1])
