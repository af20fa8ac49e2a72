"""The count that papers on pruning report, made by the tool that they use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from proxyprune.tracing.model_call import ExampleInputs, call_arguments
from proxyprune.tracing.module_state import unchanged


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
    """Multiply-accumulates by thop's convention: modules only, so no attention products; None where thop fails.

    Args:
        model: Unchanged afterwards, training modes included; what thop stores on its modules is taken off again.
        example_inputs: As for `proxyprune.trace`.
    """
    from thop import profile

    args, kwargs = call_arguments(example_inputs)
    wrapped = _ByPosition(model, tuple(kwargs), len(args))
    try:
        with unchanged(model), torch.no_grad():
            macs, _ = profile(wrapped, inputs=(*args, *kwargs.values()), verbose=False)
    except Exception:  # noqa: BLE001  a yardstick that does not fit a network is left out; the exact count does not depend on it
        return None
    return int(macs)
