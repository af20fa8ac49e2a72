"""Cut an expert to a share of the base's time on this machine.

The main process measures and every process plans from its figures, so all of them make the same cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import nn

from proxyprune.api import prune_ranked
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.training.across_processes import computed_by_main_process
from proxyprune.errors import TrainingError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.time_cost import TimeCost
from proxyprune.measuring.network_times import CostTable, with_times
from proxyprune.measuring.time_budget import prune_to_time
from proxyprune.measuring.timed_run import timed_in_turns
from proxyprune.measuring.timing import Timing
from proxyprune.planning.price import bases_of
from proxyprune.planning.request import PlanRequest
from proxyprune.result import PruneResult
from proxyprune.scoring.ranking import Ranking

T = TypeVar("T")


def timed_base(setup: Setup) -> ModelGraph:
    """Return the graph of the base with predicted times; what this machine's cost table lacks is measured."""
    if setup.base_times is None:
        setup.base_times = _times(setup, setup.graph, setup.base_model().eval())
    return replace(setup.graph, cost=replace(setup.graph.cost, time=setup.base_times))


def timed(setup: Setup, graph: ModelGraph, model: nn.Module) -> ModelGraph:
    """Return the graph of the base, or of an expert after its first cut, with predicted times.

    Args:
        setup: The run.
        graph: Trace of the model.
        model: The model. It stays as it is.
    """
    whole = timed_base(setup)
    same = [(group.id, group.atoms) for group in graph.groups] == [(group.id, group.atoms) for group in whole.groups]
    return replace(graph, cost=replace(graph.cost, time=setup.base_times if same else _times(setup, graph, model)))


def _times(setup: Setup, graph: ModelGraph, model: nn.Module) -> TimeCost | None:
    table = CostTable(progress=True)
    return _measured(setup, lambda: with_times(graph, model, setup.placed_inputs(), _timing(setup), table=table).cost.time)


def cut_to_time(setup: Setup, model: nn.Module, graph: ModelGraph, ranking: Ranking, share: float) -> PruneResult:
    """Prune a network until one forward pass takes at most a share of the base's time, measured in turns with the base.

    A target that the measurement misses is a note of the plan: an error would end a run whose base is trained.

    Args:
        setup: The run.
        model: The base, or an expert after its first cut. It stays as it is.
        graph: Its trace.
        ranking: Its blocks and channels, judged.
        share: Of the base's time, in (0, 1).

    Raises:
        TargetError: If no plan reaches the target by prediction.
    """
    base, inputs = setup.base_model().eval(), setup.placed_inputs()
    with_time, whole = timed(setup, graph, model), bases_of(timed_base(setup), ("time",))["time"]
    most = bases_of(with_time, ("time",))["time"] - 1  # an expert that is fast enough already loses as little as possible

    def pruned(asked: PlanRequest) -> PruneResult:
        value = asked.targets["time"]
        target = f"{max(1, min(most, round(value * whole)))}ns" if isinstance(value, float) else value
        return prune_ranked(model, inputs, with_time, ranking, replace(asked, target=target))

    result = prune_to_time(
        setup.config.pruning.request(share, "time"),
        pruned,
        lambda found, enough: _measured(setup, lambda: timed_in_turns(base, found.model, inputs, _timing(setup), enough=enough)),
        accept_missed=True,
    )
    assert result.plan.time is not None
    assert result.plan.time.target_nanoseconds is not None
    return replace(result, plan=replace(result.plan, target=f"{result.plan.time.target_nanoseconds}ns"))


def _timing(setup: Setup) -> Timing:
    return Timing(batch=setup.config.budgets.time_batch)


def _measured(setup: Setup, measure: Callable[[], T]) -> T:
    """Return a measurement of the main process in every process.

    Raises:
        TrainingError: In the other processes, if it failed.
    """
    if setup.processes is None:
        return measure()
    return computed_by_main_process(
        setup.processes, measure, lambda problem: TrainingError(f"The main process could not measure times: {problem}")
    )
