"""Networks made ready to be timed, and timed in turns."""

from __future__ import annotations

import contextlib
import math
import time
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

MOST_TURNS = 480
"""Turns after which no more are added for a narrower confidence interval."""

MOST_SECONDS = 20.0
"""Seconds after which no more turns are added for a narrower confidence interval."""


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
        interval: 95 % confidence interval of the median of the ratio.
        turns: Number of turns.
    """

    before: Quartiles
    after: Quartiles
    ratio: Quartiles
    timing: Timing
    interval: tuple[float, float]
    turns: int

    @staticmethod
    def of(before: Sequence[float], after: Sequence[float], timing: Timing) -> TimedTurns:
        """Summarise the seconds of two networks, turn by turn."""
        ratios = [late / early for early, late in zip(before, after, strict=True)]
        return TimedTurns(
            Quartiles.of(before), Quartiles.of(after), Quartiles.of(ratios), timing, interval=median_interval(ratios), turns=len(ratios)
        )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median, whatever the distribution; the whole range of fewer than six values.

    Source:
        Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2: the order statistics of ranks n/2 -+ 1.96 sqrt(n)/2.
    """
    count, half = len(values), 0.98 * math.sqrt(len(values))
    first = max(0, math.floor(count / 2 - half) - 1)
    last = min(count - 1, math.ceil(count / 2 + half))
    ordered = sorted(values)
    return ordered[first], ordered[last]


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
            "common size was expected. Give example inputs of that batch, and omit the batch."
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


def timed_in_turns(
    before: nn.Module,
    after: nn.Module,
    example_inputs: ExampleInputs,
    timing: Timing | None = None,
    *,
    enough: Callable[[TimedTurns], bool] | None = None,
) -> TimedTurns:
    """Time two networks that take turns, so that other work on the machine meets both.

    Args:
        before: The unpruned network.
        after: The pruned one.
        example_inputs: As for `proxyprune.trace`.
        timing: Batch, threads, dtype, repeats, eager or compiled.
        enough: As for `in_turns`.
    """
    timing = timing or Timing()
    networks = [prepared(model, example_inputs, timing) for model in (before, after)]
    device = next((value.device for _, value in named_state(before)), torch.device("cpu"))
    with threads_of(timing), running(networks[0], timing) as first, running(networks[1], timing) as second:
        seconds = clock(device)
        return in_turns(lambda: seconds(first), lambda: seconds(second), timing, enough)


def in_turns(
    first: Callable[[], float], second: Callable[[], float], timing: Timing, enough: Callable[[TimedTurns], bool] | None = None
) -> TimedTurns:
    """Run two things in turns, after a warm-up.

    Args:
        first: Runs the first thing once and returns its seconds.
        second: The same for the second.
        timing: `repeats` is the number of turns.
        enough: Return True if these turns suffice. Otherwise their number is doubled, within `MOST_TURNS` and `MOST_SECONDS`; None takes
            no more.
    """
    for _ in range(WARM_UP_ROUNDS):
        first()
        second()
    found: tuple[list[float], list[float]] = ([], [])
    wanted, started = timing.repeats, time.perf_counter()
    while True:
        if len(found[0]) >= wanted:
            turns = TimedTurns.of(*found, timing)
            if enough is None or enough(turns) or wanted >= MOST_TURNS:
                return turns
            wanted = min(2 * wanted, MOST_TURNS)
        if len(found[0]) >= timing.repeats and time.perf_counter() - started > MOST_SECONDS:
            return TimedTurns.of(*found, timing)
        for run, times in zip((first, second), found, strict=True):
            times.append(run())
