"""The arguments of one pruning that every step of it shares, and a single step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from proxyprune.api import compensated, prune_ranked
from proxyprune.compensation.calibration_pass import CalibrationData
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.time_budget import prune_to_time
from proxyprune.measuring.timed_run import timed_in_turns
from proxyprune.measuring.timing import Timing
from proxyprune.planning.request import PlanRequest
from proxyprune.pruning.advice import Advice
from proxyprune.pruning.channels import AUTO, Scorers
from proxyprune.result import PruneResult
from proxyprune.scoring import Brief, Scorer
from proxyprune.tracing.model_call import Call, ExampleInputs

Say = Callable[[str], None]
"""Takes a remark on what is being done."""


@dataclass(frozen=True)
class PruneTask:
    """The network, scorer and data of one pruning.

    Attributes:
        model: The unpruned network.
        example_inputs: What it is traced on.
        also: Further example calls.
        scorer: Ranks the blocks and channels of every network that is cut.
        batches: Calibration batches, or None.
        loss_fn: loss_fn(model, batch) -> scalar, or None.
        seed: Seed of all random choices.
        brief: Further information for the scorer, or None.
        compensate: Refit the remaining weights after every cut.
        channels: Scorer of the channels, where `scorer` scores blocks only; see `prune`.
        advice: Limits to measure before every cut; see `prune`.
        say: Takes remarks on the progress.
        timing: How networks are timed for a target of time, or None for the default.
        accept_missed_time: Take the fastest network with a note if a target of time is not met.
    """

    model: nn.Module = field(repr=False)
    example_inputs: ExampleInputs = field(repr=False)
    also: Sequence[Call] = field(repr=False)
    scorer: str | Scorer
    batches: tuple[Any, ...] | None = field(repr=False)
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = field(repr=False)
    seed: int
    brief: Brief | None = None
    compensate: bool = False
    channels: str | Scorer | None = AUTO
    advice: tuple[Advice, ...] = ()
    say: Say = field(default=lambda remark: None, repr=False)
    timing: Timing | None = None
    accept_missed_time: bool = False

    def cut(self, model: nn.Module, graph: ModelGraph, request: PlanRequest, *, inplace: bool = False) -> PruneResult:
        """Score a network and cut it once.

        Args:
            model: The network, whole or cut before.
            graph: Its trace.
            request: What is asked of the plan.
            inplace: Cut `model` itself; not for a target of time, for which several networks may be made.
        """
        self.say("scoring")
        data = CalibrationData(self.batches or (), self.loss_fn, self.seed)
        scorers = Scorers(self.scorer, self.channels, self.compensate, self.brief, self.advice)
        ranked = scorers.rank(model, self.example_inputs, graph, request, data)
        self.say("cutting")
        if "time" not in request.targets:
            result = prune_ranked(model, self.example_inputs, graph, ranked.ranking, ranked.request, inplace=inplace)
            return result.with_notes(ranked.plan_notes)
        result = prune_to_time(
            ranked.request,
            lambda asked: prune_ranked(model, self.example_inputs, graph, ranked.ranking, asked),
            lambda found, enough: timed_in_turns(model, found.model, self.example_inputs, self.timing, enough=enough),
            accept_missed=self.accept_missed_time,
        )
        return result.with_notes(ranked.plan_notes)

    def compensated(self, result: PruneResult) -> PruneResult:
        """Refit the network of a result of this task, in place."""
        assert self.batches is not None  # checked where compensation was asked for
        data = CalibrationData(self.batches, self.loss_fn, self.seed)
        return compensated(result, self.model, data, None, lambda share, note: self.say(f"compensating, {share:.0%}"))
