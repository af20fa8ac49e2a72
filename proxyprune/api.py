"""`prune`: the whole flow in one call, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from proxyprune.applying.apply import Applied, apply
from proxyprune.coupling.options import Amendments, Options
from proxyprune.coupling.rules.register import registered_rules
from proxyprune.errors import InputError, VerificationError
from proxyprune.graph.build import analyse
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.budget import Target
from proxyprune.planning.planner import make_plan
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring import Brief, Scorer, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.surgery.probe import CONV_GROUPS, NORM_GROUPS, probe_groups, with_pins
from proxyprune.tracing.capture import capture
from proxyprune.tracing.model_call import ExampleInputs


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    target: Target = 0.6,
    scorer: str | Scorer = "magnitude",
    *,
    mode: str = "width",
    metric: str = "macs",
    round_to: int = 1,
    keep: Sequence[str] = (),
    floors: Mapping[str, int | float] | None = None,
    ceilings: Mapping[str, int | float] | None = None,
    allocation: str = "auto",
    norm_groups: str = "balanced",
    conv_groups: str = "balanced",
    batches: Sequence[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
    accept_unreliable: bool = False,
    accept_uncosted: bool = False,
    inplace: bool = False,
    brief: Brief | None = None,
) -> PruneResult:
    """Trace, score, plan, apply and verify.

    Where the pruned forward does not follow a cut (a size is written as a constant in it), the channel groups concerned are pinned and the
    plan is made again; `result.report.pinned` says which and why.

    Args:
        model: Any torch module; it stays as it is unless `inplace`.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments; a batch of 1 makes costs per sample.
        target: Fraction of the base cost (0 < t < 1) or an absolute number ("3.4G").
        scorer: A name from `scorers()`, or any object with the `Scorer` interface.
        mode: "width", "depth" (whole residual blocks) or "both".
        metric: "macs" or "params": what the target budgets.
        round_to: Widths become multiples of this where they can.
        keep: Patterns of blocks, groups or parameters that stay whole.
        floors: Pattern -> fewest channels to keep (a count, or a fraction of the width).
        ceilings: Pattern -> most channels to keep.
        allocation: "channels" (those that lose least for what they save leave first, wherever they are), "blocks" (widths follow the
            importance of blocks) or "auto"; as for `make_plan`.
        norm_groups: As for `trace`.
        conv_groups: As for `trace`.
        batches: Calibration batches, for scorers that need them.
        loss_fn: loss_fn(model, batch) -> scalar, for scorers that need it.
        seed: For scorers that draw.
        accept_unreliable: Go on although the ranking says of itself that it should decide nothing.
        accept_uncosted: Go on although the MACs of some ops are unknown; they are in no figure, and the plan's notes name them.
        inplace: Cut `model` itself.
        brief: What else a scorer may be told (diffusion interval, earlier attempts); the goal is filled in from the arguments.

    Returns:
        The pruned model with plan, ranking and report.

    Raises:
        ProxyPruneError: From the stage that failed; see `proxyprune.errors`.
    """
    graph = trace(model, example_inputs, norm_groups=norm_groups, conv_groups=conv_groups, probe=False)
    brief = replace(brief or Brief(), target=target, metric=metric, mode=mode)
    ranking = score(graph, scorer, model=model, batches=batches, loss_fn=loss_fn, seed=seed, example_inputs=example_inputs, brief=brief)
    options = {"mode": mode, "metric": metric, "round_to": round_to, "floors": floors, "ceilings": ceilings}
    options |= {"allocation": allocation, "accept_unreliable": accept_unreliable, "accept_uncosted": accept_uncosted}
    return cut(model, example_inputs, graph, ranking, target, keep=keep, inplace=inplace, **options)


def cut(
    model: nn.Module,
    example_inputs: ExampleInputs,
    graph: ModelGraph,
    ranking: Ranking,
    target: Target,
    *,
    keep: Sequence[str] = (),
    inplace: bool = False,
    **options: Any,
) -> PruneResult:
    """The second half of `prune`: plan, apply and verify, with a trace and a ranking at hand.

    Args:
        model: The traced model.
        example_inputs: What it was traced on.
        graph: Its trace.
        ranking: Importances of the graph's blocks.
        target: As for `prune`.
        keep: As for `prune`.
        inplace: As for `prune`.
        options: Further arguments of `make_plan`.
    """
    while True:
        plan = make_plan(graph, ranking, target, keep=keep, model=model, **options)
        try:
            applied = apply(model, plan, example_inputs, inplace=inplace, graph=graph)
        except VerificationError as error:
            if error.module in plan.removed_blocks and error.module not in keep:
                keep = (*keep, error.module)  # this block cannot be taken out after all; choose others
                continue
            if not error.groups:
                raise
            amended = probe_groups(model, example_inputs, graph)
            if amended is graph:  # every group can be cut alone, but not as this plan does
                amended = with_pins(model, graph, error.groups, f"is not followed by the forward of {error.module or 'the model'}")
            if amended.amendments == graph.amendments:
                raise
            graph, ranking = amended, _restricted(ranking, amended)
            continue
        return PruneResult(applied.model, plan, ranking, make_report(graph, plan), applied.surgery, graph)


def _restricted(ranking: Ranking, graph: ModelGraph) -> Ranking:
    """Channel scores of the groups that are still prunable with the same atoms."""
    sizes = {group.id: group.atoms for group in graph.prunable}
    kept = {group: values for group, values in ranking.channel_scores.items() if sizes.get(group) == len(values)}
    return replace(ranking, channel_scores=kept)


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    norm_groups: str = "balanced",
    conv_groups: str = "balanced",
    probe: bool = True,
) -> ModelGraph:
    """Read a model: its channel groups, its exact cost, its blocks.

    Nothing is run on real data, and the model is not changed. It may live on the meta device or be built under FakeTensorMode.

    Args:
        model: Any torch module.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments. Costs are for these inputs; with a batch of 1
            they are costs of one sample.
        norm_groups: How GroupNorm shrinks: "balanced" keeps the number of groups and takes as many channels from each, "whole" takes
            whole groups, "reduced" may lower the number of groups for finer steps.
        conv_groups: How a grouped convolution shrinks: "balanced" keeps its groups, "whole" takes whole groups.
        probe: Cut every group by one step on a copy without weights, and pin the groups for which the forward does not follow (a size
            written as a constant, say). Without it such groups show up when a plan is applied.

    Returns:
        The graph. `graph.unsupported_ops` and the `pinned` reasons of `graph.groups` say what will not be cut, and why.

    Raises:
        ExampleInputsError: If the model raises on the inputs.
        TraceError: If torch.export cannot follow the model.
        InputError: If an option has an unknown value.
        RuleError: If a rule that was registered for one of the model's ops fails.
    """
    for name, value, known in (("norm_groups", norm_groups, NORM_GROUPS), ("conv_groups", conv_groups, CONV_GROUPS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; found {value!r}.")
    graph = analyse(model, capture(model, example_inputs), Options(norm_groups, conv_groups, registered_rules()), Amendments())
    return probe_groups(model, example_inputs, graph) if probe else graph


__all__ = ["Applied", "cut", "prune"]
