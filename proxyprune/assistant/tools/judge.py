"""Tools that judge plans: `measure`, `compare`, `history`, `apply`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from proxyprune.assistant.arguments import ApplyArguments, CompareArguments, HistoryArguments, MeasureArguments
from proxyprune.assistant.context import CallContext
from proxyprune.assistant.folder import NETWORKS
from proxyprune.assistant.state import BASE, ONE_SHOT
from proxyprune.assistant.tools.decide import check_within_budget, plan_summary
from proxyprune.assistant.treatment import LABELS, Treatment
from proxyprune.errors import AssistantError, CallLimitError, InputError
from proxyprune.measuring.wall_time import run_seconds
from proxyprune.result import PruneResult
from proxyprune.saving.network_folder import save

UNTREATED = Treatment().label
SURE = 2.0
"""A plan is better than the one-shot plan if its held-out loss is lower by this many standard errors of the paired difference. The best of
several measured plans is better by chance too; this makes such a choice rare, not impossible. A single batch gives no standard error."""


def measure(context: CallContext, arguments: MeasureArguments) -> dict[str, Any]:
    """Build the network of a plan and measure it. What was measured before is not measured again.

    Raises:
        CallLimitError: If no measurement is left, or the time of the call is over.
        MissingNeedError: If there is nothing to measure with.
    """
    if arguments.plan != BASE:
        context.state.plan(arguments.plan)
    kinds = tuple(dict.fromkeys(arguments.what))
    again = _measured(context, arguments.plan, kinds, treatment=arguments.treatment)
    values = context.state.measured[arguments.plan, arguments.treatment.label]
    base = context.state.measured.get((BASE, UNTREATED), {})
    return {
        "plan": arguments.plan,
        "treatment": arguments.treatment.label,
        **{kind: values[kind] for kind in kinds},
        "base": {kind: base[kind] for kind in kinds if kind in base},
        "one_shot": _one_shot_values(context, kinds, treatment=arguments.treatment),
        **_chance(context, arguments.plan, treatment=arguments.treatment),
        "measured_before": again,
        "measurements_left": context.bounds.measurements - context.state.measurements,
    }


def compare(context: CallContext, arguments: CompareArguments) -> dict[str, Any]:
    """Set plans side by side: cost, blocks, and what was measured. Nothing is measured.

    Raises:
        InputError: If fewer than two plans are named.
    """
    names = tuple(dict.fromkeys(arguments.plans))
    if len(names) < 2:
        raise InputError("Name two or more different plans.")
    plans = {name: context.state.plan(name) for name in names}
    summaries = {name: plan_summary(context.task, plan) for name, plan in plans.items()}
    blocks = {block for summary in summaries.values() for block in summary["blocks"]}
    return {
        "plans": {name: _row(context, name) for name in names},
        "blocks": {
            block: [summaries[name]["blocks"].get(block, 1.0) for name in names]
            for block in context.task.graph.block_by_id
            if block in blocks
        },
        "order": list(names),
    }


def history(context: CallContext, arguments: HistoryArguments) -> dict[str, Any]:
    """List rankings, plans, measurements and saved networks, and what is left of the session's limits."""
    state, bounds = context.state, context.bounds
    return {
        "base": state.measured.get((BASE, UNTREATED), {}),
        "best": _best(context),
        "plans": {name: _row(context, name) for name in list(state.plans)[-arguments.last :]},
        "rankings": {name: state.rankings[name].scorer for name in list(state.rankings)[-arguments.last :]},
        "networks": dict(state.networks),
        "left": {
            "calls": max(0, bounds.calls - context.calls),
            "measurements": bounds.measurements - state.measurements,
            "networks": bounds.networks - len(state.networks),
        },
    }


def apply(context: CallContext, arguments: ApplyArguments) -> dict[str, Any]:
    """Save the network of a plan in the workspace, if its loss on held-out data is lower than that of the one-shot plan beyond chance.

    Raises:
        AssistantError: If the plan is no better than the one-shot plan, or costs more than the budget.
        CallLimitError: If no network, or no measurement that is needed, is left.
        InputError: If the name cannot be used.
    """
    state, task = context.state, context.task
    made = state.plan(arguments.plan)
    folder = state.folder.network(arguments.name)
    if len(state.networks) >= context.bounds.networks:
        raise CallLimitError(f"All {context.bounds.networks} networks of this session are saved.")
    check_within_budget(task, made)
    losses = _guard(context, arguments.plan, treatment=arguments.treatment)
    result = _built(context, arguments.plan, treatment=arguments.treatment)
    save(result, folder)
    state.note_network(arguments.name, arguments.plan)
    place = (Path(NETWORKS) / arguments.name).as_posix()
    return {"plan": arguments.plan, "network": arguments.name, "folder": place, "treatment": arguments.treatment.label, **losses}


def _guard(context: CallContext, plan: str, *, treatment: Treatment) -> dict[str, Any]:
    """Measure a plan and the one-shot plan, and raise if the plan is no better. Equal losses on every batch pass."""
    if context.task.data is None:
        return {"loss": None, "one_shot_loss": None}
    losses = {}
    for name in dict.fromkeys((plan, ONE_SHOT)):
        _measured(context, name, ("loss",), treatment=treatment)
        losses[name] = context.state.measured[name, treatment.label]["loss"]
    found = f"Plan {plan!r} has the held-out loss {losses[plan]}, the one-shot plan {ONE_SHOT!r} has {losses[ONE_SHOT]}."
    advice = f"Apply {ONE_SHOT!r}, or a better plan; history names the best."
    if losses[plan] is None or losses[plan] > _or_inf(losses[ONE_SHOT]):
        raise AssistantError(f"{found} A network worse than the one-shot plan is not saved. {advice}")
    difference = context.state.difference(plan, treatment.label)
    error = 0.0 if difference is None else difference.standard_error or 0.0
    if difference is not None and -difference.mean < SURE * error:
        raise AssistantError(
            f"{found} The difference is less than {SURE:g} of its standard errors ({error:.3g}; {difference.batches} held-out batches), "
            f"so it may be chance. {advice} More held-out batches show smaller differences."
        )
    return {"loss": losses[plan], "one_shot_loss": losses[ONE_SHOT]}


def _measured(context: CallContext, plan: str, kinds: Collection[str], *, treatment: Treatment) -> bool:
    """Measure what is missing, and return True if nothing was."""
    known = context.state.measured.get((plan, treatment.label), {})
    missing = [kind for kind in kinds if kind not in known]
    if not missing:
        return True
    context.state.check_measurements(context.bounds.measurements)
    context.state.note_spent()
    model = _network(context, plan, treatment=treatment)
    for kind in missing:
        if kind == "loss":
            _measure_loss(context, plan, model, treatment=treatment)
        else:
            context.state.note_measured(plan, treatment.label, {kind: _value(context, model, kind)})
    return False


def _measure_loss(context: CallContext, plan: str, model: nn.Module, *, treatment: Treatment) -> None:
    """Measure the loss of each held-out batch; the loss of a plan is their mean."""
    context.deadline.check()
    losses = context.task.batch_losses(model, context.deadline)
    value = None if losses is None else statistics.fmean(losses)
    context.state.note_measured(plan, treatment.label, {"loss": value}, losses)


def _network(context: CallContext, plan: str, *, treatment: Treatment) -> nn.Module:
    if plan != BASE:
        return _built(context, plan, treatment=treatment).model
    task = context.task
    return task.trained(task.model, context.deadline) if treatment.recovery else task.model


def _built(context: CallContext, plan: str, *, treatment: Treatment) -> PruneResult:
    ranking = context.state.rankings[context.state.ranking_of[plan]]
    return context.task.built(context.state.plan(plan), ranking, treatment=treatment, deadline=context.deadline)


def _value(context: CallContext, model: nn.Module, kind: str) -> Any:
    context.deadline.check()
    if kind == "quality":
        return context.task.quality_of(model)
    return list(run_seconds(context.task.model, model, context.task.inputs))


def _one_shot_values(context: CallContext, kinds: Collection[str], *, treatment: Treatment) -> dict[str, Any]:
    known = context.state.measured.get((ONE_SHOT, treatment.label), {})
    return {kind: known[kind] for kind in kinds if kind in known}


def _chance(context: CallContext, plan: str, *, treatment: Treatment) -> dict[str, Any]:
    """Return the difference of the loss to that of the one-shot plan, and its standard error."""
    difference = None if plan in {BASE, ONE_SHOT} else context.state.difference(plan, treatment.label)
    if difference is None:
        return {}
    return {"loss_minus_one_shot": difference.mean, "standard_error": difference.standard_error}


def _row(context: CallContext, name: str) -> dict[str, Any]:
    """One plan in a list: cost, and what was measured after each treatment."""
    made = context.state.plan(name)
    return {
        "ranking": context.state.ranking_of[name],
        "scorer": made.scorer,
        "mode": made.mode,
        "macs": made.macs,
        "params": made.params,
        "removed_blocks": len(made.removed_blocks),
        "measured": {label: values for label in LABELS if (values := context.state.measured.get((name, label)))},
    }


def _best(context: CallContext) -> dict[str, Any]:
    """Plan with the lowest loss, by treatment."""
    found = {}
    for wanted in LABELS:
        losses = {
            plan: values["loss"]
            for (plan, label), values in context.state.measured.items()
            if label == wanted and plan != BASE and "loss" in values
        }
        if losses:
            found[wanted] = min(losses, key=lambda plan: _or_inf(losses[plan]))
    return found


def _or_inf(loss: float | None) -> float:
    return math.inf if loss is None else loss
