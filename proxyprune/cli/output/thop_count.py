"""The count that papers on pruning report, made by the tool that they use."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from proxyprune.tracing.model_call import ExampleInputs, call_arguments


class _ByPosition(nn.Module):
    """A model whose keyword arguments are fixed, because thop passes positional ones only."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], positional: int) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.positional = positional

    def forward(self, *values: Any) -> Any:
        """Run the model with the last values under their names."""
        return self.model(*values[: self.positional], **dict(zip(self.names, values[self.positional :], strict=True)))


def thop_macs(model: nn.Module, example_inputs: ExampleInputs) -> int | None:
    """Multiply-accumulates by thop's convention: modules only, so no attention products; None without thop, or where thop fails.

    Args:
        model: Not changed; a copy is counted.
        example_inputs: As for `proxyprune.trace`.
    """
    try:
        from thop import profile
    except ImportError:
        return None
    args, kwargs = call_arguments(example_inputs)
    wrapped = _ByPosition(copy.deepcopy(model), tuple(kwargs), len(args))
    try:
        with torch.no_grad():
            macs, _ = profile(wrapped, inputs=(*args, *kwargs.values()), verbose=False)
    except Exception:  # noqa: BLE001  a yardstick that does not fit a network is left out; the exact count does not depend on it
        return None
    return int(macs)
