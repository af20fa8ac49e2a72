"""Ablation, the oracle: what the loss really does when one block's contribution is taken away."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import ScoringContext
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.calibration import Calibration
from proxyprune.scoring.tools.hooks import Hook, hooked, module_of
from proxyprune.scoring.tools.scale import half_saturation
from proxyprune.support.nested import mapped, tensors_of


@dataclass(frozen=True)
class AblationScorer:
    """Measured increase of the loss when one block's contribution is removed: the oracle that cheaper scorers are compared with.

    A removable block is replaced by the identity: it returns its input in the container of its output. Any other block returns zeros. A
    block whose module is never called (its parameters are used from outside) has its parameters zeroed instead. Noise is the same in
    every run, so only the block makes the difference. The increase is brought to [0, 1) by `half_saturation`; a loss that is no longer
    finite counts as 1.

    It takes one pass over the batches for each block, measures blocks one at a time (two that can stand in for each other both look
    expendable), and says nothing about what fine-tuning recovers. It does not score channels.
    """

    name: str = field(default="ablation", init=False)
    needs: frozenset[str] = field(default=frozenset({"loss"}), init=False)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Run every batch once as it is and once for each block."""
        calibration = Calibration.of(self, context)
        modules = {block.id: module_of(calibration.model, block.id) for block in graph.blocks}
        called: set[str] = set()
        with hooked([(module, _noting(called, block)) for block, module in modules.items()]):
            base = _mean_loss(calibration, must_be_finite=True)
        increase: dict[str, float | None] = {}
        for block in graph.blocks:
            if block.id in called:
                removal = hooked([(modules[block.id], _pass_on if block.removable else _silence)])
            else:
                removal = _zeroed(modules[block.id])
            with removal:
                loss = _mean_loss(calibration, must_be_finite=False)
            increase[block.id] = loss - base if math.isfinite(loss) else math.inf
        return Ranking(
            scores=half_saturation(increase),
            scorer=self.name,
            seed=context.seed,
            notes=_notes(len(calibration.batches), base, increase, called),
        )


def _notes(count: int, base: float, increase: Mapping[str, float | None], called: set[str]) -> tuple[str, ...]:
    notes = [f"Ablation over {count} calibration batches; mean loss {base:.6g} with all blocks."]
    if broken := [block for block, value in increase.items() if value == math.inf]:
        notes.append(f"Without these blocks the loss is not finite: {', '.join(broken)}.")
    if silent := [block for block in increase if block not in called]:
        notes.append(f"Parameters were zeroed for blocks whose module is not called: {', '.join(silent)}.")
    return tuple(notes)


def _mean_loss(calibration: Calibration, *, must_be_finite: bool) -> float:
    total = 0.0
    for index in range(len(calibration.batches)):
        with calibration.untouched(index), torch.no_grad():
            loss = calibration.loss(index)
        total += calibration.finite(loss, index) if must_be_finite else float(loss)
    return total / len(calibration.batches)


@contextlib.contextmanager
def _zeroed(module: nn.Module) -> Iterator[None]:
    saved = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    try:
        with torch.no_grad():
            for parameter, _ in saved:
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for parameter, values in saved:
                parameter.copy_(values)


def _noting(called: set[str], block: str) -> Hook:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        called.add(block)

    return hook


def _pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Put the block's input in the place of the first tensor of its output; a block without such an input contributes zeros."""
    first = next(tensors_of(output), None)
    if first is None:
        return output
    passed = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.shape == first.shape), None)
    if passed is None:
        return _silence(module, args, kwargs, output)
    return mapped(output, lambda tensor: passed if tensor is first else tensor)


def _silence(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Zero every tensor of real numbers in the output."""
    return mapped(output, lambda tensor: torch.zeros_like(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor)
