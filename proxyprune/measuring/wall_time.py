"""The time of one run before and after, on this machine."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from proxyprune.tracing.model_call import ExampleInputs, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged

ROUNDS = 9
WARM_UP_ROUNDS = 2


def run_seconds(before: nn.Module, after: nn.Module, example_inputs: ExampleInputs) -> tuple[float, float]:
    """Median wall time of one run of two networks, in seconds.

    The networks take turns, so that whatever else the machine does meets both. Small networks spend most of their time between the
    layers: time follows MACs only where layers are large.

    Args:
        before: The unpruned network.
        after: The pruned one.
        example_inputs: As for `proxyprune.trace`; time is that of this batch.
    """
    found: tuple[list[float], list[float]] = ([], [])
    with unchanged(before), unchanged(after), evaluation(before), evaluation(after), torch.no_grad():
        for round_number in range(WARM_UP_ROUNDS + ROUNDS):
            for model, times in zip((before, after), found, strict=True):
                seconds = _one_run(model, example_inputs)
                if round_number >= WARM_UP_ROUNDS:
                    times.append(seconds)
    return statistics.median(found[0]), statistics.median(found[1])


def _one_run(model: nn.Module, example_inputs: ExampleInputs) -> float:
    args, kwargs = call_arguments(on_device_of(model, example_inputs))
    _wait()
    started = time.perf_counter()
    model(*args, **kwargs)
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    """Until an accelerator has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
