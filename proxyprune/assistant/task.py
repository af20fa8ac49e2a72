"""The network that a session prunes, its goal, and the data to measure with."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Unpack

from torch import Tensor, nn

from proxyprune.api import compensate, trace
from proxyprune.applying.apply import apply
from proxyprune.assistant.bounds import Deadline
from proxyprune.assistant.treatment import Treatment
from proxyprune.coupling.options import TraceKeywords
from proxyprune.errors import InputError, MissingNeedError, ProxyPruneError, ScoringError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, DataKeywords, Recovery, data_digest, held_out_losses, recovered, weights_digest
from proxyprune.measuring.network_times import with_times
from proxyprune.measuring.timing import Timing
from proxyprune.planning.budget import Budget, Target, parse_budget
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.price import bases_of
from proxyprune.planning.request import PlanKeywords, PlanRequest
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring.contract import NEEDS, LossFunction
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import scorers
from proxyprune.scoring.run_scorer import score
from proxyprune.support.keywords import check_keywords, picked
from proxyprune.tracing.model_call import Call, ExampleInputs, evaluation
from proxyprune.tracing.module_state import unchanged

_OTHER_MACHINE = "network"


class TaskKeywords(PlanKeywords, TraceKeywords, DataKeywords, total=False):
    """Keyword arguments of `PruningTask.of` that other functions take too: `PlanKeywords`, `TraceKeywords` and `DataKeywords`."""


@dataclass(frozen=True)
class PruningTask:
    """A network to prune, and the measures that judge the result.

    Attributes:
        model: The network; it stays as it is.
        inputs: Its example inputs.
        graph: Its trace.
        goal: Budget and limits; no plan of the session exceeds them.
        data: Batches to score with and to judge by, or None: nothing is measured then except time.
        quality: Another measure of a network, larger is better, or None.
        recovery: The short fine-tuning before a measurement that asks for it.
        seed: All randomness follows from it.
        show_source: Whether the assistant may read the source code of blocks.
    """

    model: nn.Module = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    graph: ModelGraph = field(repr=False)
    goal: PlanRequest
    data: Data | None = field(default=None, repr=False)
    quality: Callable[[nn.Module], float] | None = field(default=None, repr=False)
    recovery: Recovery = field(default_factory=lambda: Recovery(50))
    seed: int = 0
    show_source: bool = True

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: ExampleInputs,
        target: Target = 0.6,
        *,
        also: Sequence[Call] = (),
        quality: Callable[[nn.Module], float] | None = None,
        recovery: Recovery | None = None,
        seed: int = 0,
        show_source: bool = True,
        timing: Timing | None = None,
        **keywords: Unpack[TaskKeywords],
    ) -> PruningTask:
        """Trace a network and hold out data.

        Args:
            model: The network.
            example_inputs: One tensor, a tuple of arguments, or a dict of named arguments; a batch of 1 makes costs per sample.
            target: Fraction of the base cost (0 < t < 1) or an absolute number ("3.4G"): the most that any plan of the session may cost.
            also: Further example calls, as for `trace`.
            quality: quality(model) -> number, larger is better.
            recovery: The short fine-tuning; None takes 50 steps.
            seed: All randomness follows from it.
            show_source: Whether the assistant may read the source code of blocks.
            timing: Batch, threads, dtype, and eager or compiled, for targets of time. Plans meet these by prediction.
            keywords: `PlanKeywords` (mode, metric, round_to, keep, floors, ceilings, remove, allocation, accept_uncosted,
                accept_unreliable), `TraceKeywords` (norm_groups, conv_groups) and `DataKeywords` (batches, loss_fn, held_out,
                training_loss_fn). Without batches or a loss, nothing is measured except time.

        Raises:
            ProxyPruneError: From tracing, or if the goal cannot be used.
        """
        check_keywords(PruningTask.of, keywords, TaskKeywords)
        goal = PlanRequest.of(target, **picked(PlanKeywords, keywords))
        given = picked(DataKeywords, keywords)
        data = Data.of(**given) if given.get("batches") is not None and given.get("loss_fn") is not None else None
        graph = trace(model, example_inputs, also=also, **picked(TraceKeywords, keywords))
        if goal.needs_times:
            graph = with_times(graph, model, example_inputs, timing)
        return cls(model, example_inputs, graph, goal, data, quality, recovery or Recovery(50), seed, show_source)

    @cached_property
    def budgets(self) -> dict[str, Budget]:
        """The goal's budgets by metric, in whole MACs, parameters or nanoseconds."""
        return self.budgets_of(self.goal)

    def budgets_of(self, request: PlanRequest) -> dict[str, Budget]:
        """Return the budgets of a request by metric, in whole MACs, parameters or nanoseconds."""
        bases = bases_of(self.graph, tuple(request.targets))
        return {metric: parse_budget(target, base=bases[metric], metric=metric) for metric, target in request.targets.items()}

    @cached_property
    def scorers(self) -> tuple[str, ...]:
        """Names of the registered scorers that reach no other machine and need no more than the data at hand."""
        given = {"model"} if self.data is None else {"model", "batches", "loss_fn"}
        return tuple(info.name for info in scorers() if info.needs is not None and info.error is None and _serves(info.needs, given))

    @property
    def start(self) -> str:
        """The scorer of the one-shot plan that every other plan is compared with."""
        return "taylor" if "taylor" in self.scorers else "magnitude"

    def ranked(self, scorer: str, deadline: Deadline) -> Ranking:
        """Score the blocks with one of `scorers`."""
        if scorer not in self.scorers:
            raise InputError(f"No scorer of this session is named {scorer!r}. Available: {', '.join(self.scorers)}.")
        data = self._timed(deadline)
        return score(
            self.graph,
            scorer,
            model=self.model,
            batches=None if data is None else data.batches,
            loss_fn=None if data is None else data.loss_fn,
            seed=self.seed,
            example_inputs=self.inputs,
            brief=self.goal.brief(),
        )

    def built(self, plan: PrunePlan, ranking: Ranking, *, treatment: Treatment, deadline: Deadline) -> PruneResult:
        """Cut the network as planned, verify it, and treat it as asked."""
        applied = apply(self.model, plan, self.inputs, graph=self.graph)
        deadline.check()
        report = make_report(self.graph, plan, applied.not_followed, config_note=applied.config_note)
        result = PruneResult(applied.model, plan, ranking, report, applied.surgery, self.graph, self.inputs)
        if treatment.compensate:
            data = self._required(deadline)
            result = compensate(result, self.model, data.batches, data.loss_fn, seed=self.seed, inplace=True)
        return replace(result, model=self.trained(result.model, deadline)) if treatment.recovery else result

    def trained(self, model: nn.Module, deadline: Deadline) -> nn.Module:
        """Return a copy of a network after the recovery."""
        return recovered(model, self._required(deadline), self.recovery, self.seed)

    def batch_losses(self, model: nn.Module, deadline: Deadline) -> list[float] | None:
        """Return the loss of each held-out batch, or None if one is not finite."""
        found = held_out_losses(model, self._required(deadline), self.seed)
        return list(found) if all(map(math.isfinite, found)) else None

    def quality_of(self, model: nn.Module) -> float | None:
        """Return the caller's measure of a network, or None if it is not finite.

        Raises:
            MissingNeedError: If the task has none.
            ScoringError: If the function fails or returns no number.
        """
        if self.quality is None:
            raise MissingNeedError("No quality function was given. Define quality(model) in the model file, or measure the loss.")
        try:
            with unchanged(model), evaluation(model):
                found = float(self.quality(model))
        except ProxyPruneError:
            raise
        except Exception as error:
            raise ScoringError(f"The quality function raised {type(error).__name__}: {error}. It must return one number.") from error
        return found if math.isfinite(found) else None

    def identity(self) -> dict[str, Any]:
        """Return what a session belongs to, as plain JSON types."""
        data = None if self.data is None else data_digest((self.data.batches, self.data.held_out))
        times = self.graph.cost.time
        return {
            "model_class": self.graph.model_class,
            "fingerprint": self.graph.fingerprint,
            "weights": weights_digest(self.model),
            "data": data,
            "target": self.goal.target,
            "mode": self.goal.mode,
            **self.goal.recorded(),
            "recovery_steps": self.recovery.steps,
            "learning_rate": self.recovery.learning_rate,
            "seed": self.seed,
            **({"times": dict(times.settings)} if self.goal.needs_times and times is not None else {}),
        }

    def _required(self, deadline: Deadline) -> Data:
        data = self._timed(deadline)
        if data is None:
            raise MissingNeedError(
                "No loss can be measured: the model file defines no calibration_batches() or no loss(model, batch). "
                "Measure the time, or add both."
            )
        return data

    def _timed(self, deadline: Deadline) -> Data | None:
        """Return the data with losses that check the deadline before each batch."""
        if self.data is None:
            return None
        training = self.data.training_loss_fn
        return replace(
            self.data,
            loss_fn=_timed_loss(self.data.loss_fn, deadline),
            training_loss_fn=None if training is None else _timed_loss(training, deadline),
        )


def _timed_loss(loss_fn: LossFunction, deadline: Deadline) -> LossFunction:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        deadline.check()
        return loss_fn(model, batch)

    return loss


def _serves(needs: Collection[str], given: Collection[str]) -> bool:
    """Return True for a scorer that needs no other machine and nothing that was not given."""
    return _OTHER_MACHINE not in needs and all(argument in given for need in needs for argument in NEEDS[need])
