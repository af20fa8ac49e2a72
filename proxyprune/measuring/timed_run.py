"""Networks made ready to be timed, and timed in turns."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from proxyprune.errors import InputError
from proxyprune.measuring.op_timer import clock
from proxyprune.measuring.timing import Timing
from proxyprune.support.nested import mapped, tensors_of
from proxyprune.tracing.model_call import ExampleInputs, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import copied, unchanged
from proxyprune.tracing.names import named_state

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile of repeated measurements."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Quartiles:
        """Quartiles of values."""
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        return Quartiles(float(low), float(middle), float(high))

    def __str__(self) -> str:
        return f"{self.middle:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class TimedTurns:
    """Wall time of one run of two networks that took turns.

    Attributes:
        before: Seconds of the unpruned network.
        after: Seconds of the pruned one.
        ratio: After / before, of runs that followed each other.
        timing: How they were timed.
    """

    before: Quartiles
    after: Quartiles
    ratio: Quartiles
    timing: Timing


@dataclass(frozen=True)
class Network:
    """A network and its inputs, as a timing wants them.

    Attributes:
        model: The model, or a copy of another dtype.
        inputs: Example inputs on its device, repeated to the batch.
        changed: Whether batch or dtype differ from those of the example inputs.
    """

    model: nn.Module = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    changed: bool


def prepared(model: nn.Module, example_inputs: ExampleInputs, timing: Timing) -> Network:
    """Return a network in the batch and dtype of a timing; the model itself stays as it is.

    Raises:
        InputError: If the inputs have no common first dimension that the batch could repeat.
    """
    inputs = on_device_of(model, example_inputs)
    batched = inputs if timing.batch is None else _repeated(inputs, timing.batch)
    changed = batched is not inputs
    if timing.dtype is not None:
        dtype = getattr(torch, timing.dtype)
        if any(value.is_floating_point() and value.dtype is not dtype for _, value in named_state(model)):
            model, changed = copied(model, {}).to(dtype), True
        batched = mapped(batched, lambda value: value.to(dtype) if value.is_floating_point() else value)
    return Network(model, batched, changed)


def _repeated(inputs: Any, batch: int) -> Any:
    """Return the inputs with their first sample repeated; the same inputs if they have this batch size."""
    sizes = [len(value) for value in tensors_of(inputs) if value.dim()]
    present = sizes[0] if sizes else 0
    if not present or any(size != present for size in sizes):
        raise InputError(
            f"A batch of {batch} cannot be made from these example inputs: the first dimensions of their tensors are {sizes}, and one "
            "common size was expected. Give example inputs of that batch, and leave the batch out."
        )
    if present == batch:
        return inputs
    times = math.ceil(batch / present)
    return mapped(inputs, lambda value: value.repeat(times, *[1] * (value.dim() - 1))[:batch] if value.dim() else value)


@contextlib.contextmanager
def threads_of(timing: Timing) -> Iterator[None]:
    """Compute with the threads of a timing inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(timing.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def running(network: Network, timing: Timing) -> Iterator[Callable[[], Any]]:
    """Yield a function that runs a network once, in evaluation mode and without gradients."""
    args, kwargs = call_arguments(network.inputs)
    forward = torch.compile(network.model) if timing.compiled else network.model
    with unchanged(network.model), evaluation(network.model), torch.no_grad():
        yield lambda: forward(*args, **kwargs)


def timed_in_turns(before: nn.Module, after: nn.Module, example_inputs: ExampleInputs, timing: Timing | None = None) -> TimedTurns:
    """Time two networks that take turns, so that other work on the machine meets both.

    Args:
        before: The unpruned network.
        after: The pruned one.
        example_inputs: As for `proxyprune.trace`.
        timing: Batch, threads, dtype, repeats, eager or compiled.
    """
    timing = timing or Timing()
    networks = [prepared(model, example_inputs, timing) for model in (before, after)]
    device = next((value.device for _, value in named_state(before)), torch.device("cpu"))
    found: tuple[list[float], list[float]] = ([], [])
    with threads_of(timing), running(networks[0], timing) as first, running(networks[1], timing) as second:
        seconds = clock(device)
        for round_number in range(WARM_UP_ROUNDS + timing.repeats):
            for run, times in zip((first, second), found, strict=True):
                taken = seconds(run)
                if round_number >= WARM_UP_ROUNDS:
                    times.append(taken)
    ratios = [after / before for before, after in zip(*found, strict=True)]
    return TimedTurns(Quartiles.of(found[0]), Quartiles.of(found[1]), Quartiles.of(ratios), timing)
