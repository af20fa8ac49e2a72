"""Read a model once: one graph of ATen ops that still knows its modules.

The recorder does it where it can; torch.export, non-strict, does the rest. Both keep linear, convolution, norms and attention whole and
note the owning module of every op. Autograd is off while tracing, which halves the time, and nn.MultiheadAttention's fused inference
kernel is off, because its single op hides the projections.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import nn

from proxyprune.errors import InputError
from proxyprune.tracing.export import export
from proxyprune.tracing.model_call import (
    ExampleInputs,
    call_arguments,
    evaluation,
    on_device_of,
)
from proxyprune.tracing.program import Program
from proxyprune.tracing.record import record

__all__ = ["ExampleInputs", "Program", "call_arguments", "capture", "evaluation", "on_device_of"]


@contextlib.contextmanager
def _without_log_of_failures() -> Iterator[None]:
    """Keep a failing op's traceback, which torch logs as well as raises, off the terminal: `_explain` says it in a sentence."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def capture(model: nn.Module, example_inputs: ExampleInputs) -> Program:
    """Read a model into a `Program`.

    The model may live on any device, on the meta device, or be built under FakeTensorMode; inputs follow it.

    Args:
        model: Any module; it is not changed.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments. A batch of 1 makes costs per sample.

    Raises:
        ExampleInputsError: If the model itself raises on these inputs.
        TraceError: If the model runs but torch.export cannot follow it; the message names the module and the reason.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a torch.nn.Module to trace, found {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "A TorchScript module holds no Python forward that could be traced and cut. Pass the module that it was made from."
        )
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = on_device_of(model, args), on_device_of(model, kwargs)
    with _without_log_of_failures():
        return record(model, args, kwargs) or export(model, args, kwargs)
