"""`trace` and `prune`: the verbs that run several stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

from torch import Tensor, nn

from proxyprune.applying.apply import apply
from proxyprune.coupling.options import Amendments, Options, TraceKeywords
from proxyprune.coupling.rules.register import registered_rules
from proxyprune.errors import TargetError, VerificationError
from proxyprune.graph.build import analyse
from proxyprune.graph.cost import CostModel
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.budget import Target
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanKeywords, PlanRequest
from proxyprune.planning.widths import TOLERANCE
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring import Brief, Scorer, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.keywords import check_keywords, picked
from proxyprune.surgery.probe import probe_groups, with_pins
from proxyprune.tracing.capture import capture_all
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
    seed: int = 0,
    inplace: bool = False,
    brief: Brief | None = None,
    **keywords: Unpack[PruneKeywords],
) -> PruneResult:
    """Trace, score, plan, apply and verify.

    If the pruned forward does not follow a cut (a size is written as a constant in it), the channel groups concerned are pinned and the
    plan is made again; `result.report.pinned` lists them with the reason.

    Args:
        model: Any torch module; it stays as it is unless `inplace`.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments; a batch of 1 makes costs per sample.
        also: Further example calls, as for `trace`; every one is verified.
        target: Fraction of the base cost (0 < t < 1) or an absolute number ("3.4G").
        scorer: A name from `scorers()`, or any object with the `Scorer` interface.
        batches: Calibration batches, for scorers that need them.
        loss_fn: loss_fn(model, batch) -> scalar, for scorers that need it.
        seed: Seed of scorers that draw at random.
        inplace: Cut `model` itself.
        brief: Further information for the scorer (diffusion interval, earlier attempts); the goal is filled in from the arguments.
        keywords: `PlanKeywords` (mode, metric, round_to, keep, floors, ceilings, allocation, uniform,
            accept_uncosted, accept_unreliable) and `TraceKeywords` (norm_groups, conv_groups, adapter_ranks).

    Returns:
        The pruned model with plan, ranking and report.

    Raises:
        ProxyPruneError: From the stage that failed; see `proxyprune.errors`.
        TypeError: If a keyword is unknown.
    """
    check_keywords(prune, keywords, PruneKeywords)
    request = PlanRequest.of(target, **picked(PlanKeywords, keywords))
    graph = trace(model, example_inputs, also=also, probe=False, **picked(TraceKeywords, keywords))
    brief = request.brief(brief)
    ranking = score(graph, scorer, model=model, batches=batches, loss_fn=loss_fn, seed=seed, example_inputs=example_inputs, brief=brief)
    return prune_ranked(model, example_inputs, graph, ranking, request, inplace=inplace)


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
    # Each failure keeps one more block, or leaves fewer prunable groups; so this many attempts are enough.
    for _ in range(len(graph.prunable) + len(graph.blocks) + 1):
        plan = plan_for(graph, ranking, request, model=model)
        try:
            applied = apply(model, plan, example_inputs, inplace=inplace, graph=graph)
        except VerificationError as error:
            failure = error
        else:
            report = make_report(graph, plan, applied.not_followed, config_note=applied.config_note)
            result = PruneResult(applied.model, plan, ranking, report, applied.surgery, graph, example_inputs)
            return _Attempt(result, applied.cost)
        if failure.module in plan.removed_blocks and failure.module not in request.limits.keep:
            request = request.keeping(failure.module)  # this block cannot be removed after all; choose others
        else:
            graph = _amended(model, example_inputs, graph, failure)
            ranking = _restricted(ranking, graph)
    raise VerificationError(
        "No plan could be verified, although blocks were kept and channel groups pinned as often as there are blocks and groups. "
        f"The last difference: {failure}",
        module=failure.module,
        groups=failure.groups,
    ) from failure


def _amended(model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, failure: VerificationError) -> ModelGraph:
    """Return the graph with the groups pinned or tied whose cut the forward does not follow.

    Raises:
        VerificationError: The failure itself, if no amendment avoids it.
    """
    if not failure.groups:
        raise failure
    amended = probe_groups(model, example_inputs, graph)
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
