"""Measured figures that a prompt may show beside each block, as z-scores over all blocks.

Shown figures leave the machine with the prompt; they are a handful of rounded numbers, but they do come from the weights and the data.
"""

from __future__ import annotations

import math
import statistics as moments
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from proxyprune.scoring.contract import ScoringContext

if TYPE_CHECKING:
    from torch import Tensor, nn

    from proxyprune.graph.model_graph import ModelGraph
    from proxyprune.scoring.contract import Scorer

NEEDS_OF: Mapping[str, str] = {"weights": "weights", "taylor": "gradients", "similarity": "loss"}
"""Statistic -> what a scorer that shows it needs."""

_CLAMP = 3.0


def measure(names: tuple[str, ...], scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> dict[str, dict[str, float]]:
    """z-scores by statistic, then by block; blocks about which nothing is known get 0.

    Args:
        names: Any of `NEEDS_OF`.
        scorer: Who asks, for messages.
        graph: The network.
        context: With what `NEEDS_OF` says.

    Raises:
        ProxyPruneError: If the model or the batches cannot be used.
    """
    return {name: _z_scores(_MEASURES[name](scorer, graph, context)) for name in names}


def _weights(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> dict[str, float | None]:
    from proxyprune.scoring.builtin.magnitude import MagnitudeScorer

    return _logarithms(MagnitudeScorer().score(graph, context).scores)


def _taylor(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> dict[str, float | None]:
    from proxyprune.scoring.builtin.taylor import TaylorScorer

    return _logarithms(TaylorScorer(unused="zero").score(graph, context).scores)


def _similarity(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> dict[str, float | None]:
    """Mean cosine between a block's input and output, over samples and batches; None where the shapes differ."""
    import torch

    from proxyprune.scoring.tools.calibration import Calibration

    calibration = Calibration.of(scorer, context)
    found: dict[str, list[float]] = {block.id: [] for block in graph.blocks}
    modules = dict(calibration.model.named_modules())
    handles = [
        modules[block.id].register_forward_hook(_noting(found[block.id]), with_kwargs=True) for block in graph.blocks if block.id in modules
    ]
    try:
        for index in range(len(calibration.batches)):
            with calibration.untouched(index), torch.no_grad():
                calibration.loss(index)
    finally:
        for handle in handles:
            handle.remove()
    return {block: sum(values) / len(values) if values else None for block, values in found.items()}


def _noting(found: list[float]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        import torch

        before = _first_tensor((*args, *kwargs.values()))
        after = _first_tensor((output,))
        if before is None or after is None or before.shape != after.shape or not before.numel():
            return
        cosine = torch.nn.functional.cosine_similarity(before.flatten(1).double(), after.flatten(1).double(), dim=1).mean()
        if math.isfinite(value := float(cosine)):
            found.append(value)

    return hook


def _first_tensor(values: tuple[Any, ...]) -> Tensor | None:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1:
            return value
        if isinstance(value, tuple | list) and (inner := _first_tensor(tuple(value))) is not None:
            return inner
    return None


def _logarithms(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Undo `half_saturation` up to a constant factor: the logarithm of the measurement."""
    return {block: math.log(score / (1.0 - score)) if 0.0 < score < 1.0 else None for block, score in scores.items()}


def _z_scores(values: Mapping[str, float | None]) -> dict[str, float]:
    known = [value for value in values.values() if value is not None]
    mean = moments.fmean(known) if known else 0.0
    deviation = moments.pstdev(known) if known else 0.0
    return {
        block: 0.0 if value is None or deviation < 1e-9 else round(min(_CLAMP, max(-_CLAMP, (value - mean) / deviation)), 2)
        for block, value in values.items()
    }


_MEASURES: Mapping[str, Callable[[Any, ModelGraph, ScoringContext], dict[str, float | None]]] = {
    "weights": _weights,
    "taylor": _taylor,
    "similarity": _similarity,
}
