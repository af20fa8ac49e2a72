"""Running statistics of batch norms, estimated again on calibration batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxyprune.compensation.calibration_pass import CalibrationData
from proxyprune.scoring.tools.hooks import Hook, hooked


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norms that have running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)
    }


def reestimated(model: nn.Module, norms: Mapping[str, nn.Module], data: CalibrationData) -> dict[str, dict[str, Tensor]]:
    """Return new running statistics, from the batches that the weights are fitted to.

    Each norm normalises by the statistics of the batch meanwhile, so that the norms behind it see what they will see later. The new
    values are those of all batches together: means of means, and variances with the spread of the means.

    Args:
        model: The network, in evaluation mode; it is not changed.
        norms: From `batch_norms`.
        data: Batches of even index are used.

    Returns:
        Norm -> {"running_mean": ..., "running_var": ...}; norms that no batch reaches are missing.
    """
    sums: dict[str, tuple[Tensor, Tensor, float]] = {}

    def watch(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            value: Tensor = args[0] if args else next(iter(kwargs.values()))
            flat = value.detach().movedim(1, -1).reshape(-1, value.shape[1]).double()
            total, squares, count = sums.get(name, (0.0, 0.0, 0.0))
            sums[name] = (total + flat.sum(dim=0), squares + flat.square().sum(dim=0), count + flat.shape[0])
            return _normalised(module, value, flat) if flat.shape[0] > 1 else None

        return hook

    with hooked((module, watch(name)) for name, module in norms.items()):
        for index in range(0, len(data.batches), 2):
            data.run(model, index)
    found = {}
    for name, (total, squares, count) in sums.items():
        if count < 2:
            continue
        mean = total / count
        found[name] = {"running_mean": mean, "running_var": (squares / count - mean.square()).clamp_min(0.0) * count / (count - 1)}
    return found


def _normalised(module: nn.Module, value: Tensor, flat: Tensor) -> Tensor:
    """Return the norm's output with the statistics of this batch."""
    norm: Any = module
    return torch.nn.functional.batch_norm(
        value, flat.mean(dim=0).to(value.dtype), flat.var(dim=0, correction=0).to(value.dtype), norm.weight, norm.bias, False, 0.0, norm.eps
    )
