"""The measurement of one proposal: cut, recover and take the held-out loss, in this process or in several at once."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proxyprune.api import prune_ranked
from proxyprune.errors import InputError, ScoringError, VerificationError
from proxyprune.graph.build import analyse
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, Recovery, held_out_loss, recovered
from proxyprune.modelfile import MODULE_PREFIX
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.request import PlanRequest
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.extras import explained
from proxyprune.tracing.capture import ExampleInputs, capture_all

Wanted = tuple[Ranking, PlanRequest]


@dataclass(frozen=True)
class Measured:
    """Result of a measurement.

    Attributes:
        plan: The plan of the network, with what cutting pinned further; None if it could not be cut.
        loss: Held-out loss, or None.
        seconds: Time of cutting and measuring.
        error: Why there is no loss, or None.
    """

    plan: PrunePlan | None
    loss: float | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The network and the data of all measurements of a search."""

    model: nn.Module = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    graph: ModelGraph = field(repr=False)
    data: Data = field(repr=False)
    recovery: Recovery
    seed: int

    def of(self, ranking: Ranking, request: PlanRequest) -> Measured:
        """Cut, recover and measure; a network that does not run, or has no finite loss, is a result too."""
        started = time.perf_counter()
        plan: PrunePlan | None = None
        try:
            result = prune_ranked(self.model, self.inputs, self.graph, ranking, request)
            plan, model = result.plan, result.model
            if self.recovery.steps:
                model = recovered(model, self.data, self.recovery, self.seed)
            loss = held_out_loss(model, self.data, self.seed)
        except (VerificationError, ScoringError) as error:
            return Measured(plan, None, time.perf_counter() - started, str(error))
        if not math.isfinite(loss):
            return Measured(plan, None, time.perf_counter() - started, "The held-out loss is not finite.")
        return Measured(plan, loss, time.perf_counter() - started)


def measured_in_processes(measurement: Measurement, wanted: Mapping[str, Wanted], jobs: int) -> Iterator[Measured]:
    """Yield the measurements in order, several at once in processes of their own.

    Every process uses as many threads as this one, so that losses do not depend on the number of processes.

    Args:
        measurement: The network and the data.
        wanted: Ranking and request by the name of the measurement, for messages.
        jobs: Number of processes.

    Raises:
        InputError: If network, loss or data cannot be sent to another process.
        ScoringError: If a process ends without a result; the message names the measurement.
    """
    with explained("Measuring in several processes"):
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

    content = _pickled(measurement)
    folders = tuple(str(Path(str(module.__file__)).parent) for module in _model_files())
    tasks = (delayed(_measured)(content, folders, torch.get_num_threads(), one) for one in wanted.values())
    names = list(wanted)
    finished = 0
    try:
        for found in Parallel(n_jobs=jobs, backend="loky", return_as="generator")(tasks):
            yield found
            finished += 1
    except TerminatedWorkerError as error:
        beside = ", ".join(names[finished + 1 : finished + jobs]) or "none"
        raise ScoringError(
            f"A measuring process ended without a result, during the measurement of {names[finished]} or of one beside it ({beside}). "
            "It was killed, or memory ran out. Use fewer jobs, and resume."
        ) from error


def _pickled(measurement: Measurement) -> bytes:
    """Return a measurement as bytes, without the traced program, which each process makes again.

    Classes and functions of model files are a part of the bytes, because other processes cannot import these files.
    """
    with explained("Measuring in several processes"):
        import cloudpickle

    graph = measurement.graph
    further = [call.inputs for call in graph.program.further]
    parts = (measurement.model, measurement.inputs, measurement.data, measurement.recovery, measurement.seed, graph.cost.time)
    modules = _model_files()
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        content: bytes = cloudpickle.dumps((*parts, further, graph.options, graph.amendments))
    except Exception as error:  # objects of users may raise anything when they are pickled
        raise InputError(
            "jobs sends network, loss and batches to other processes, and one of them cannot be pickled "
            f"({type(error).__name__}: {error}). Use jobs=1."
        ) from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    return content


def _model_files() -> list[Any]:
    return [module for name, module in sys.modules.items() if name.startswith(MODULE_PREFIX)]


@functools.lru_cache(maxsize=1)
def _unpickled(content: bytes) -> Measurement:
    import pickle

    model, inputs, data, recovery, seed, times, further, options, amendments = pickle.loads(content)
    graph = analyse(model, capture_all(model, inputs, further), options, amendments)
    graph = replace(graph, cost=replace(graph.cost, time=times))
    return Measurement(model, inputs, graph, data, recovery, seed)


def _measured(content: bytes, folders: tuple[str, ...], threads: int, wanted: Wanted) -> Measured:
    """Run one measurement in a process of its own."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    torch.set_num_threads(threads)
    return _unpickled(content).of(*wanted)
