"""`trace`, `compensate`, and the cut of a network whose blocks are ranked: the stages that others are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from proxyprune.applying.apply import apply
from proxyprune.compensation.calibration_pass import CalibrationData
from proxyprune.compensation.readers import Networks
from proxyprune.compensation.refit import Advance, CompensationSettings, refit
from proxyprune.coupling.options import Amendments, Options, TraceKeywords
from proxyprune.coupling.rules.register import registered_rules
from proxyprune.errors import InputError, MissingNeedError, TargetError, VerificationError
from proxyprune.graph.build import analyse
from proxyprune.graph.cost import CostModel
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.network_times import times_again
from proxyprune.planning.budget import Target
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.planning.widths import TOLERANCE
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.keywords import check_keywords
from proxyprune.support.progress import bar
from proxyprune.surgery.attribute_evidence import AttributeEvidence, evidence_for
from proxyprune.surgery.perform import perform
from proxyprune.surgery.probe import probe_groups, with_pins
from proxyprune.tracing.capture import capture_all
from proxyprune.tracing.model_call import Call, ExampleInputs
from proxyprune.tracing.module_state import copied
from proxyprune.tracing.names import named_state


def compensate(
    result: PruneResult,
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    *,
    seed: int = 0,
    settings: CompensationSettings | None = None,
    inplace: bool = False,
    progress: bool = False,
) -> PruneResult:
    """Refit the weights that a cut left, in closed form, so that the layers yield again what they yielded before.

    For every layer that reads a cut channel group, a ridge regression maps the inputs that stay to the output of the unpruned layer. The
    batches of even index fit. The others decide, layer by layer and for the whole network, whether the refit is kept: the held-out measure
    never gets worse, and a network that cannot be helped stays bit for bit as it was. Only weights, biases and running statistics change.

    Args:
        result: What pruning returned.
        model: The unpruned model; it stays as it is.
        batches: At least two; what `loss_fn` understands, or example inputs of the model if there is no loss. No labels are needed.
        loss_fn: loss_fn(model, batch) -> scalar; it then decides for the whole network. Otherwise the distance of the outputs does.
        seed: Randomness inside the model or the loss follows from it, the same for both networks.
        settings: Memory and details of the fit.
        inplace: Change `result.model` itself instead of a copy.
        progress: Show a bar on stderr.

    Returns:
        The result with the refitted model; `report.compensation` has the figures, and `report.notes` says what was done.

    Raises:
        MissingNeedError: If there are fewer than two batches.
        InputError: If `model` is not the unpruned model, or cannot be run on a batch.
    """
    data = CalibrationData(check_batches(batches), loss_fn, seed)
    target = result if inplace else replace(result, model=copied(result.model, {}))
    with bar("Compensation, %", 100, shown=progress) as advance:
        return compensated(target, model, data, settings, lambda share, note: advance(round(100 * share), note))


def compensated(
    result: PruneResult, model: nn.Module, data: CalibrationData, settings: CompensationSettings | None, advance: Advance
) -> PruneResult:
    """Refit the model of a result, in place."""
    _check_unpruned(model, result)
    found = refit(Networks(model, result.model, result.surgery, result.graph.program), data, settings, advance)
    report = replace(result.report, compensation=found, notes=(*result.report.notes, *found.notes))
    return replace(result, report=report)


def _check_unpruned(model: nn.Module, result: PruneResult) -> None:
    """Raise if a model is not the one that a result was pruned from.

    Raises:
        InputError: If the shape of a parameter differs.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named_state(model)}
    for name, shape in result.graph.parameter_shapes.items():
        if shapes.get(name) != shape:
            found = "no such parameter" if name not in shapes else f"shape {list(shapes[name])}"
            raise InputError(
                f"Compensation needs the unpruned model: expected '{name}' with shape {list(shape)}, found {found}. Pass the "
                "unpruned model. After inplace=True it no longer exists, so prune with compensate=True instead."
            )


def check_batches(batches: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return the batches as a tuple.

    Raises:
        MissingNeedError: If there are none, or one bare batch.
    """
    if batches is None or isinstance(batches, Tensor | str | Mapping):
        found = "none" if batches is None else f"one {type(batches).__name__}"
        raise MissingNeedError(
            f"Compensation needs a list of calibration batches, found {found}. Pass batches=[batch, ...], at least two; in a model file, "
            "define calibration_batches()."
        )
    return tuple(batches)


def moved_into(model: nn.Module, result: PruneResult) -> nn.Module:
    """Cut `model` itself like the result, and give it the result's weights."""
    perform(model, result.surgery)
    values = dict(named_state(result.model))
    with torch.no_grad():
        for name, tensor in named_state(model):
            tensor.copy_(values[name])
    return model


def prune_ranked(
    model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, ranking: Ranking, request: PlanRequest, *, inplace: bool = False
) -> PruneResult:
    """Run the second half of `prune`, given a trace and a ranking: plan, apply and verify.

    Args:
        model: The traced model.
        example_inputs: What it was traced on.
        graph: Its trace.
        ranking: Importances of the graph's blocks.
        request: What is asked of the plan.
        inplace: Cut `model` itself.

    Raises:
        VerificationError: If the forward does not follow a cut, and neither other blocks nor pinned groups avoid that.
        ProxyPruneError: From planning; see `proxyprune.errors`.
    """
    if graph.program.on_values:
        return _prune_on_values(model, example_inputs, graph, ranking, request, inplace=inplace)
    return _prune_once(model, example_inputs, graph, ranking, request, inplace=inplace).result


_BUDGETS_TRIED = 3


def _prune_on_values(
    model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, ranking: Ranking, request: PlanRequest, *, inplace: bool
) -> PruneResult:
    """Prune a network in which values decide sizes, and count what the pruned network's own run costs.

    With fewer channels the values are others, and may select more or fewer boxes. So the plan is made again with a budget corrected by the
    count, until the count fits the budget that was asked for. If it never does, the first plan stands, for the sizes of the unpruned run.
    """
    tried: list[_Attempt] = []
    budget = limit = 0
    for number in range(1, _BUDGETS_TRIED + 1):
        try:
            attempt = _prune_once(
                model, example_inputs, graph, ranking, replace(request, target=budget) if tried else request, inplace=False
            )
        except TargetError:
            if tried:
                break
            raise
        tried.append(attempt)
        limit = limit or attempt.result.plan.target_macs
        budget, spent = budget or limit, attempt.macs
        near = limit - TOLERANCE * attempt.result.plan.base_macs <= spent <= limit
        if near or spent == attempt.result.plan.macs or request.metric != "macs" or (number > 1 and min(a.macs for a in tried) <= limit):
            break
        budget = min(attempt.result.plan.base_macs - 1, budget * limit // max(1, spent))
    fitting = [attempt for attempt in tried if attempt.macs <= limit]
    chosen = max(fitting, key=lambda attempt: attempt.macs) if fitting else tried[0]
    if inplace:
        applied = apply(model, chosen.result.plan, example_inputs, inplace=True, graph=chosen.result.graph)
        chosen = replace(chosen, result=replace(chosen.result, model=applied.model, surgery=applied.surgery))
    return _counted(chosen, target=request.target, limit=limit)


@dataclass(frozen=True)
class _Attempt:
    """A pruned network, and the cost of its own run where that is not the planned one."""

    result: PruneResult
    cost: CostModel | None

    @property
    def macs(self) -> int:
        """MACs of its own run."""
        return self.result.plan.macs if self.cost is None else self.cost.base_macs


def _counted(attempt: _Attempt, *, target: Target, limit: int) -> PruneResult:
    """Return the result with the MACs of the pruned network's own run, and with the budget that was asked for."""
    result = attempt.result
    config_note = next((note for note in result.report.notes if note not in result.plan.notes), None)
    plan = replace(result.plan, target=target, target_macs=limit)
    if attempt.macs <= limit:
        plan = replace(plan, macs=attempt.macs)
        report = make_report(result.graph, plan, result.report.not_followed, counted=attempt.cost, config_note=config_note)
    else:
        note = f"The pruned network's own run takes {attempt.macs:,} MACs; the plan counts with the sizes of the unpruned run."
        plan = replace(plan, notes=(*plan.notes, note))
        report = make_report(result.graph, plan, result.report.not_followed, config_note=config_note)
    return replace(result, plan=plan, report=report)


def _prune_once(
    model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, ranking: Ranking, request: PlanRequest, *, inplace: bool
) -> _Attempt:
    failure = VerificationError("No plan was tried.")
    evidence = evidence_for(model, graph, example_inputs)
    # Each failure keeps one more block, or leaves fewer prunable groups; so this many attempts are enough.
    for _ in range(len(graph.prunable) + len(graph.blocks) + 1):
        plan = plan_for(graph, ranking, request, model=model)
        try:
            applied = apply(model, plan, example_inputs, inplace=inplace, graph=graph, evidence=evidence)
        except VerificationError as error:
            failure = error
        else:
            report = make_report(graph, plan, applied.not_followed, config_note=applied.config_note)
            result = PruneResult(applied.model, plan, ranking, report, applied.surgery, graph, example_inputs)
            return _Attempt(result, applied.cost)
        if failure.module in plan.removed_blocks and failure.module not in request.limits.keep:
            request = request.keeping(failure.module)  # this block cannot be removed after all; choose others
        else:
            graph = times_again(_amended(model, example_inputs, graph, failure, evidence), graph, model, example_inputs)
            ranking = _restricted(ranking, graph)
    raise VerificationError(
        "No plan could be verified, even after keeping blocks and pinning channel groups one after the other. "
        f"The last difference: {failure}",
        module=failure.module,
        groups=failure.groups,
    ) from failure


def _amended(
    model: nn.Module,
    example_inputs: ExampleInputs,
    graph: ModelGraph,
    failure: VerificationError,
    evidence: Sequence[AttributeEvidence],
) -> ModelGraph:
    """Return the graph with the groups pinned or tied whose cut the forward does not follow.

    Raises:
        VerificationError: The failure itself, if no amendment avoids it.
    """
    if not failure.groups:
        raise failure
    amended = probe_groups(model, example_inputs, graph, evidence)
    if amended is graph:  # every group can be cut alone, but not as this plan does
        amended = with_pins(model, graph, failure.groups, f"is not followed by the forward of {failure.module or 'the model'}")
    if amended.amendments == graph.amendments:
        raise failure
    return amended


def _restricted(ranking: Ranking, graph: ModelGraph) -> Ranking:
    """Channel scores of the groups that are still prunable with the same atoms."""
    sizes = {group.id: group.atoms for group in graph.prunable}
    kept = {group: values for group, values in ranking.channel_scores.items() if sizes.get(group) == len(values)}
    return replace(ranking, channel_scores=kept)


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    also: Sequence[Call] = (),
    probe: bool = True,
    **keywords: Unpack[TraceKeywords],
) -> ModelGraph:
    """Read a model: its channel groups, its exact cost, its blocks.

    Nothing is run on real data, and the model is not changed. It may live on the meta device or be built under FakeTensorMode.

    Args:
        model: Any torch module.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments. Costs are for these inputs; with a batch of 1
            they are costs of one sample.
        also: Further example calls that reach other branches or towers; `TrainingCall(inputs)` runs in training mode. A cut is then valid
            for all calls, and costs are those of the first. Parameters that no call reaches stay whole (`graph.unreached`).
        probe: Cut every group by one step on a copy without weights, and pin the groups for which the forward does not follow (a size
            written as a constant, say). Without it such groups show up when a plan is applied.
        keywords: `TraceKeywords`: norm_groups, conv_groups, adapter_ranks.

    Returns:
        The graph. `graph.unsupported_ops` and the `pinned` reasons of `graph.groups` say what will not be cut, and why.

    Raises:
        ExampleInputsError: If the model raises on the inputs.
        TraceError: If torch.export cannot follow the model.
        InputError: If a keyword has an unknown value.
        RuleError: If a rule that was registered for one of the model's ops fails.
        TypeError: If a keyword is unknown.
    """
    check_keywords(trace, keywords, TraceKeywords)
    options = Options(**keywords, rules=registered_rules())
    graph = analyse(model, capture_all(model, example_inputs, also), options, Amendments())
    return probe_groups(model, example_inputs, graph) if probe else graph
