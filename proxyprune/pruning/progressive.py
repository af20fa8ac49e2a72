"""Cut in several steps, and score again before each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import torch
from torch import nn

from proxyprune.applying.apply import apply
from proxyprune.coupling.options import Amendments
from proxyprune.errors import InputError, PlanMismatchError, TargetError, VerificationError
from proxyprune.graph.build import analyse
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.budget import parse_budget
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.request import PlanRequest
from proxyprune.pruning.composed_plan import composed, limits_after
from proxyprune.pruning.task import PruneTask, Say
from proxyprune.result import PruneResult, make_report
from proxyprune.support.checks import is_count
from proxyprune.tracing.capture import capture_all
from proxyprune.tracing.names import named_state

_EARLIER = "After an earlier step: "


def check_steps(steps: int, graph: ModelGraph, request: PlanRequest) -> None:
    """Raise if a network cannot be cut in this number of steps.

    Raises:
        InputError: If the number is none, values decide sizes of the network, or the request needs times or has several targets.
    """
    if not is_count(steps, 1):
        raise InputError(f"Expected steps to be a whole number from 1 up, found {steps!r}.")
    if steps > 1 and (request.needs_times or len(request.targets) > 1):
        raise InputError(
            f"steps={steps} takes one target of MACs or parameters and a number for round_to, because every step has its own budget. "
            "Prune to a time, to several targets, or with round_to='auto' with steps=1."
        )
    if steps > 1 and graph.program.on_values:
        raise InputError(
            f"steps={steps} needs a network whose sizes do not depend on values, because every step is planned on the network after the "
            "previous step. Prune this one with steps=1."
        )


def budgets(base: int, limit: int, steps: int) -> tuple[int, ...]:
    """Return the budget of every step: equal ratios from the base to the limit, rounded down."""
    return (*(int(base * (limit / base) ** (step / steps)) for step in range(1, steps)), limit)


def pruned_in_steps(
    task: PruneTask, graph: ModelGraph, request: PlanRequest, steps: int, between: Callable[[PruneResult], PruneResult]
) -> PruneResult:
    """Cut and score again until the budget is met.

    Each step plans on the network that the last one left. Its cut is then expressed as a plan for the unpruned network, applied to that
    network and verified there, and takes over the weights.

    Args:
        task: What to prune, and with which scorer and data.
        graph: The trace of the unpruned network.
        request: What is asked of the plan.
        steps: Number of cuts; all have the same ratio.
        between: Called with the result of every cut but the last; returns it with other weights (refitted, trained).

    Returns:
        One result, with one plan and one surgery for the unpruned network.

    Raises:
        VerificationError: If the cuts cannot be expressed as one plan.
        ProxyPruneError: From a step that failed; see `proxyprune.errors`.
    """
    check_steps(steps, graph, request)
    base = graph.params if request.metric == "params" else graph.macs
    limit = parse_budget(request.target, base=base, metric=request.metric).limit
    result: PruneResult | None = None
    cuts = 0
    for number, budget in enumerate(_distinct(budgets(base, limit, steps)), 1):
        spent = base if result is None else _spent(result.plan)
        if spent <= budget:
            continue
        own = replace(task, say=_numbered(task, number, steps))
        result = (
            own.cut(task.model, graph, replace(request, target=budget))
            if result is None
            else _cut_again(own, between(result), budget, request)
        )
        cuts += 1
    assert result is not None  # the limit is below the base
    return _finished(result, request, limit, cuts)


def _numbered(task: PruneTask, number: int, steps: int) -> Say:
    return lambda remark: task.say(f"step {number} of {steps}, {remark}")


def _distinct(found: tuple[int, ...]) -> Iterator[int]:
    yield from dict.fromkeys(max(1, budget) for budget in found)


def _spent(plan: PrunePlan) -> int:
    return plan.params if plan.metric == "params" else plan.macs


def _cut_again(task: PruneTask, before: PruneResult, budget: int, request: PlanRequest) -> PruneResult:
    """Cut the network of a result once more, and express both cuts as one."""
    program = capture_all(before.model, task.example_inputs, task.also)
    graph = analyse(before.model, program, before.graph.options, _amendments_left(before, program.shapes))
    limits = replace(request.limits, remove=())  # these blocks left in the first step
    further = _with_floors(task, before, graph, replace(request, target=budget, limits=limits))
    plan = composed(before, graph, further.plan, budget)
    try:
        applied = apply(task.model, plan, task.example_inputs, graph=before.graph)
        _take_over(applied.model, further.model)
    except (PlanMismatchError, VerificationError) as error:
        raise VerificationError(
            f"The cuts of several steps cannot be expressed as one plan for this network: {error} Prune it with steps=1."
        ) from error
    report = make_report(before.graph, plan, applied.not_followed, config_note=applied.config_note)
    refit = () if before.report.compensation is None else (_EARLIER + before.report.compensation.notes[0],)
    earlier = tuple(note for note in before.report.notes if note.startswith(_EARLIER))
    report = replace(report, notes=(*report.notes, *earlier, *refit))
    return replace(before, model=applied.model, plan=plan, report=report, surgery=applied.surgery)


def _with_floors(task: PruneTask, before: PruneResult, graph: ModelGraph, request: PlanRequest) -> PruneResult:
    """Cut with the default floor of every group, and without it if the budget is out of reach otherwise."""
    kept = request.mode == "width"
    try:
        return task.cut(before.model, graph, replace(request, limits=limits_after(before, graph, request.limits, default_floor=kept)))
    except TargetError:
        if not kept:
            raise
        return task.cut(before.model, graph, replace(request, limits=limits_after(before, graph, request.limits, default_floor=False)))


def _amendments_left(before: PruneResult, names: Collection[str]) -> Amendments:
    """Return what probing found out of the unpruned network, for the parameters that are left."""
    found = before.graph.amendments

    def left(key: str) -> bool:
        return key.rpartition(":")[0] in names

    return Amendments(
        {key: reason for key, reason in found.pins.items() if left(key)},
        tuple(pair for pair in found.ties if all(map(left, pair))),
    )


def _take_over(model: nn.Module, source: nn.Module) -> None:
    """Give a network the weights of another one of the same structure.

    Raises:
        VerificationError: If the structures differ.
    """
    values = dict(named_state(source))
    own = dict(named_state(model))
    different = [name for name, tensor in own.items() if name not in values or values[name].shape != tensor.shape]
    if different or len(own) != len(values):
        raise VerificationError(f"The networks differ in {len(different)} tensors, such as {different[:1]}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])


def _finished(result: PruneResult, request: PlanRequest, limit: int, cuts: int) -> PruneResult:
    """Return the result with the budget that was asked for, and with a note on the steps."""
    note = f"Cut in {cuts} steps of equal ratio; the scorer ran again before each." if cuts > 1 else "One step met the budget."
    plan = replace(
        result.plan,
        target=request.target,
        target_macs=limit if request.metric == "macs" else result.plan.base_macs,
        target_params=limit if request.metric == "params" else result.plan.base_params,
        notes=(*result.plan.notes, note),
        options={**result.plan.options, "steps": cuts},
    )
    report = replace(result.report, target_macs=plan.target_macs, notes=(*result.report.notes, note))
    return replace(result, plan=plan, report=report)
