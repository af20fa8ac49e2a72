"""`prune`: the verb that runs every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

from torch import Tensor, nn

from proxyprune.api import check_batches, moved_into, trace
from proxyprune.coupling.options import TraceKeywords
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Recovery
from proxyprune.measuring.network_times import with_times
from proxyprune.measuring.timing import Timing
from proxyprune.planning.budget import Target
from proxyprune.planning.request import PlanKeywords, PlanRequest
from proxyprune.pruning.advice import Advice
from proxyprune.pruning.automatic import AUTO_SCORER, Choice, GivenRanking, chosen, modes_of, note_of, split
from proxyprune.pruning.channels import AUTO
from proxyprune.pruning.losses import LossData, LossMeter, check_recovery, loss_data, with_recovery
from proxyprune.pruning.progressive import check_steps, pruned_in_steps
from proxyprune.pruning.task import PruneTask
from proxyprune.result import Losses, PruneResult
from proxyprune.scoring import Brief, Scorer
from proxyprune.scoring.contract import shows_time
from proxyprune.support.keywords import check_keywords, picked
from proxyprune.tracing.model_call import Call, ExampleInputs


class PruneKeywords(PlanKeywords, TraceKeywords, total=False):
    """Keyword arguments of `prune` that other functions take too: those of `PlanKeywords` and of `TraceKeywords`."""


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    target: Target = 0.6,
    scorer: str | Scorer = "magnitude",
    *,
    also: Sequence[Call] = (),
    batches: Sequence[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    held_out: Sequence[Any] | None = None,
    training_loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
    inplace: bool = False,
    brief: Brief | None = None,
    compensate: bool = False,
    channels: str | Scorer | None = AUTO,
    advice: Sequence[Advice] = (),
    steps: int = 1,
    recover_steps: int = 0,
    learning_rate: float = 1e-4,
    timing: Timing | None = None,
    accept_missed_time: bool = False,
    auto_seconds: float | None = None,
    progress: Callable[[str], None] | None = None,
    **keywords: Unpack[PruneKeywords],
) -> PruneResult:
    """Trace, score, plan, apply and verify.

    If the pruned forward does not follow a cut (a size is written as a constant in it), the channel groups concerned are pinned and the
    plan is made again; `result.report.pinned` lists them with the reason.

    Args:
        model: Any torch module; it stays as it is unless `inplace`.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments; a batch of 1 makes costs per sample.
        also: Further example calls, as for `trace`; every one is verified.
        target: Fraction of the base cost (0 < t < 1), an absolute number ("3.4G", "5ms" with metric="time"), or several by metric
            ({"macs": 0.7, "params": 0.8, "time": 0.6}), all of which hold. A target of time is measured, and the plan corrected, until it
            is met.
        scorer: A name from `scorers()`, or any object with the `Scorer` interface. "auto" tries the scorers that the data allows, in every
            mode unless `mode` is given, and takes the cut that is best on held-out batches; `report.trials` has the table.
        batches: Calibration batches, for scorers that need them, for compensation and for training.
        loss_fn: loss_fn(model, batch) -> scalar, for scorers that need it. With batches, `report.losses` has the loss before and after.
        held_out: Batches to measure that loss on. Without them it is measured on `batches`; if the network is trained, the last third of
            `batches` is held out.
        training_loss_fn: The loss for training, if it differs from `loss_fn`.
        seed: Seed of scorers that draw at random, and of training.
        inplace: Cut `model` itself.
        brief: Further information for the scorer (diffusion interval, earlier attempts); the goal is filled in from the arguments.
        compensate: Refit the remaining weights on `batches`, without training; see the function `compensate`.
        channels: Scorer of the channels, where `scorer` scores blocks only. Its channel scores are multiplied by exp(b z), z the
            standardised block score. The weight b is chosen by the loss on the batches of odd index, after a trial compensation. Weight
            0 is a candidate, and none above it in the loss after the cut is taken, so the cut is never worse there than with the channel
            scorer alone. "auto": "taylor" for a scorer that reaches another machine, in mode "width", if there are two batches and a
            loss. None: no channel scorer.
        advice: Limits that somebody proposes, each with a reason. Each is measured like the weight b, on top of those before it: kept if it
            lowers the loss, dropped otherwise. The plan's notes record both.
        steps: Number of cuts. Each removes the same share of what is left; the scorer runs again before each, and compensation after each.
        recover_steps: Updates of training after the cut, with AdamW on `batches`; 0 trains nothing. With several cuts, an equal part
            follows each.
        learning_rate: AdamW's.
        timing: Batch, threads, dtype, and eager or compiled, for targets of time.
        accept_missed_time: Return the fastest network with a note if a target of time is not met, instead of an error.
        auto_seconds: With "auto", start no trial after this time; None tries everything, and the choice is the same every time.
        progress: Called with a remark before each part of the work.
        keywords: `PlanKeywords` (mode, metric, round_to, keep, floors, ceilings, remove, allocation, uniform,
            accept_uncosted, accept_unreliable) and `TraceKeywords` (norm_groups, conv_groups, adapter_ranks).

    Returns:
        The pruned model with plan, ranking and report.

    Raises:
        ProxyPruneError: From the stage that failed; see `proxyprune.errors`.
        TypeError: If a keyword is unknown.
    """
    check_keywords(prune, keywords, PruneKeywords)
    request = PlanRequest.of(target, **picked(PlanKeywords, keywords))
    task = PruneTask(
        model=model,
        example_inputs=example_inputs,
        also=also,
        scorer=scorer,
        batches=check_batches(batches) if compensate else None if batches is None else tuple(batches),
        loss_fn=loss_fn,
        seed=seed,
        brief=brief,
        compensate=compensate,
        channels=channels,
        advice=tuple(advice),
        say=progress or (lambda remark: None),
        timing=timing,
        accept_missed_time=accept_missed_time,
    )
    work = prune_work(task, held_out, training_loss_fn, Recovery(recover_steps, learning_rate) if recover_steps else None)
    deciding = () if work.data is None else work.data.measured
    if scorer == AUTO_SCORER and work.data is None:
        calibration, deciding = split(batches, held_out)
        work = replace(work, task=replace(work.task, batches=calibration))
    work.task.say("tracing")
    graph = trace(model, example_inputs, also=also, probe=False, **picked(TraceKeywords, keywords))
    check_steps(steps, graph, request)
    if request.needs_times or shows_time(scorer):
        work.task.say("timing ops")
        graph = with_times(graph, model, example_inputs, timing)
    try:
        losses = work.meter.start(model)
        at_once = steps == 1 and not compensate and not recover_steps and scorer != AUTO_SCORER and "time" not in request.targets
        if at_once and inplace:
            return work.reported(work.task.cut(model, graph, request, inplace=True), losses)
        if scorer == AUTO_SCORER:
            choice = chosen(work.task, graph, request, modes_of(graph, keywords.get("mode")), deciding, auto_seconds)
            result = work.taken(choice, graph, steps, losses)
        else:
            result = work.finished(work.cut(graph, request, steps), losses, steps)
        return replace(result, model=moved_into(model, result)) if inplace else result
    finally:
        graph.program.evidence.clear()  # it holds the example inputs, and the result's graph outlives them


def prune_work(
    task: PruneTask,
    held_out: Sequence[Any] | None,
    training_loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    recovery: Recovery | None,
) -> PruneWork:
    """Return the work of a task, with batches held out if the network is trained or scorers are tried.

    Args:
        task: With all batches.
        held_out: Batches to measure the loss on, or None.
        training_loss_fn: The loss for training, if it differs.
        recovery: Training, or None.

    Raises:
        MissingNeedError: If the data does not suffice.
    """
    check_recovery(recovery, task.loss_fn)
    hold_out = recovery is not None or (task.scorer == AUTO_SCORER and task.loss_fn is not None)
    data = loss_data(task.batches, held_out, task.loss_fn, training_loss_fn, must_hold_out=hold_out)
    if data is not None and hold_out:
        task = replace(task, batches=data.batches)
    return PruneWork(task, LossMeter(data, task.seed), data, recovery)


@dataclass(frozen=True)
class PruneWork:
    """The work after the cut: refit, training, and the loss after each.

    Attributes:
        task: The pruning.
        meter: Measures the loss.
        data: What it is measured with, or None.
        recovery: Training, or None.
    """

    task: PruneTask
    meter: LossMeter
    data: LossData | None
    recovery: Recovery | None

    def cut(self, graph: ModelGraph, request: PlanRequest, steps: int) -> PruneResult:
        """Cut in one step, or in several with a refit and a part of the training between them."""
        if steps == 1:
            return self.task.cut(self.task.model, graph, request)
        return pruned_in_steps(self.task, graph, request, steps, lambda result: self._between(result, steps))

    def _between(self, result: PruneResult, steps: int) -> PruneResult:
        if self.task.compensate:
            result = self.task.compensated(result)
        if self.recovery is not None and self.data is not None and (part := self.recovery.steps // steps):
            result = with_recovery(result, self.data, replace(self.recovery, steps=part), self.task.seed)
        return result

    def finished(self, result: PruneResult, losses: Losses | None, steps: int) -> PruneResult:
        """Refit and train the network of a result, and report the losses."""
        losses = self.meter.add(losses, "cut", result.model)
        if self.task.compensate:
            result = self.task.compensated(result)
            losses = self.meter.add(losses, "compensated", result.model)
        if self.recovery is not None and self.data is not None:
            self.task.say(f"training, {self.recovery.steps} steps")
            last = self.recovery.steps - (steps - 1) * (self.recovery.steps // steps)
            result = with_recovery(result, self.data, replace(self.recovery, steps=last), self.task.seed)
            losses = self.meter.add(losses, "recovered", result.model)
            if losses is not None:
                losses = replace(losses, recover_steps=self.recovery.steps, learning_rate=self.recovery.learning_rate)
        return self._with_losses(result, losses)

    def taken(self, choice: Choice, graph: ModelGraph, steps: int, losses: Losses | None) -> PruneResult:
        """Cut as `scorer="auto"` chose, from the same scores, and finish as for any scorer."""
        scorer = GivenRanking(choice.ranking) if steps == 1 else choice.ranking.scorer
        own = replace(self, task=replace(self.task, scorer=scorer))
        result = own.cut(graph, choice.request, steps)
        result = own.finished(result, losses, steps)
        notes = (*result.report.notes, note_of(choice.trials))
        return replace(result, report=replace(result.report, trials=choice.trials, notes=notes))

    def reported(self, result: PruneResult, losses: Losses | None) -> PruneResult:
        """Report the losses of a network that was cut and nothing else."""
        return self._with_losses(result, self.meter.add(losses, "cut", result.model))

    def _with_losses(self, result: PruneResult, losses: Losses | None) -> PruneResult:
        note = () if self.data is None or self.data.note is None else (self.data.note,)
        report = replace(result.report, losses=losses, notes=(*result.report.notes, *self.meter.notes, *note))
        return replace(result, report=report)
