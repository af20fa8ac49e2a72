"""Time single calls of ops on a device: all of them in turns, so that other work on the machine meets each alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from proxyprune.measuring.op_calls import OpCall, TensorSpec

ROUNDS = 5
"""Timed rounds; the first one more is not counted."""

_WEIGHT_BYTES = 64 * 2**20
"""Least memory that weights are taken from in turns, so that none is left in a cache from the last call."""

_CALLS_TOGETHER = 120
_WHOLE_SECONDS = 2.0
_WHOLE_RUNS = 100


class OpTimer(Protocol):
    """Measures calls of ops."""

    def measure(self, calls: Sequence[OpCall]) -> Iterator[tuple[OpCall, int]]:
        """Yield each call with its nanoseconds, as they come; calls that cannot be run alone are left out."""
        ...

    def whole(self, run: Callable[[], Any]) -> int:
        """Return the nanoseconds of one run of a whole network."""
        ...


class DeviceTimer:
    """Runs calls on a device with random tensors.

    Args:
        device: Where.
        rounds: Timed rounds of each call.
    """

    def __init__(self, device: torch.device, rounds: int = ROUNDS) -> None:
        self._device = device
        self._rounds = rounds
        self._clock = clock(device)

    def measure(self, calls: Sequence[OpCall]) -> Iterator[tuple[OpCall, int]]:
        """As in `OpTimer`. The lower quartile of all rounds counts."""
        with torch.no_grad():
            for start in range(0, len(calls), _CALLS_TOGETHER):
                yield from self._in_turns(calls[start : start + _CALLS_TOGETHER])

    def whole(self, run: Callable[[], Any]) -> int:
        """As in `OpTimer`. The lower quartile of at least five runs counts, and of as many as fit into two seconds."""
        for _ in range(2):
            run()
        found: list[float] = []
        while len(found) < self._rounds or (sum(found) < _WHOLE_SECONDS and len(found) < _WHOLE_RUNS):
            found.append(self._clock(run))
        return round(1e9 * float(np.quantile(found, 0.25)))

    def _in_turns(self, calls: Sequence[OpCall]) -> Iterator[tuple[OpCall, int]]:
        pools = _Pools(calls, self._device)
        times: dict[int, list[float]] = {index: [] for index in range(len(calls))}
        for round_number in range(self._rounds + 1):
            order = list(times)
            random.Random(round_number).shuffle(order)  # the first call of a kind finds its code in no cache
            for index in order:
                run = calls[index].bound(pools.tensor)
                pools.next_call()
                try:
                    seconds = self._clock(run)
                except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                    del times[index]  # needs values or a state that a random tensor does not have; the caller reports it
                    continue
                if round_number:
                    times[index].append(seconds)
        for index, found in times.items():
            yield calls[index], round(1e9 * float(np.quantile(found, 0.25)))


class _Pools:
    """Random memory that tensors are views of, so that no time goes into making them."""

    def __init__(self, calls: Sequence[OpCall], device: torch.device) -> None:
        self._device = device
        self._pools: dict[tuple[torch.dtype, bool], Tensor] = {}
        self._used: dict[tuple[torch.dtype, bool], int] = {}
        most: dict[tuple[torch.dtype, bool], int] = {}
        for call in calls:
            own: dict[tuple[torch.dtype, bool], int] = {}
            for spec in call.tensors:
                own[spec.dtype, spec.parameter] = own.get((spec.dtype, spec.parameter), 0) + math.prod(spec.shape)
            for key, count in own.items():
                most[key] = max(most.get(key, 1), count)
        for (dtype, parameter), count in most.items():
            size = max(2 * count, _WEIGHT_BYTES // dtype.itemsize) if parameter and dtype.is_floating_point else count
            self._pools[dtype, parameter] = _filled(size, dtype, device)

    def tensor(self, spec: TensorSpec) -> Tensor:
        """Return the next part of the memory of this type."""
        key = spec.dtype, spec.parameter
        count, start = math.prod(spec.shape), self._used.get(key, 0)
        start = start if start + count <= len(self._pools[key]) else 0
        self._used[key] = start + count
        return self._pools[key][start : start + count].view(spec.shape)

    def next_call(self) -> None:
        """Let activations be taken from the start again; weights go on."""
        for key in self._used:
            if not key[1]:
                self._used[key] = 0


def _filled(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Small positive numbers, zeros for whole numbers (indices), and True for flags."""
    if dtype.is_floating_point:
        block = torch.linspace(0.1, 1.0, 4096, device=device).to(dtype)
        return block.repeat(-(-size // len(block)))[:size]
    return torch.ones(size, dtype=dtype, device=device) if dtype is torch.bool else torch.zeros(size, dtype=dtype, device=device)


def clock(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Return a function that runs something and returns its seconds.

    On a CUDA device events are timed. On a processor with one thread it is the time of that thread, in which other programs have no part;
    with several threads, and on other devices, it is the wall clock.
    """
    if device.type == "cuda":
        return _cuda_seconds
    if device.type == "mps":
        return _waiting_seconds
    return _thread_seconds if torch.get_num_threads() == 1 else _wall_seconds


def _thread_seconds(run: Callable[[], Any]) -> float:
    started = time.thread_time()
    run()
    return time.thread_time() - started


def _wall_seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _waiting_seconds(run: Callable[[], Any]) -> float:
    torch.mps.synchronize()
    started = time.perf_counter()
    run()
    torch.mps.synchronize()
    return time.perf_counter() - started


def _cuda_seconds(run: Callable[[], Any]) -> float:
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch has no types here
    torch.cuda.synchronize()
    started.record()
    run()
    ended.record()
    torch.cuda.synchronize()
    return float(started.elapsed_time(ended)) / 1000
