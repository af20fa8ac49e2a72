"""`prune`: the whole flow in one call, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from proxyprune.apply import Applied, apply
from proxyprune.budget import Target
from proxyprune.calling import ExampleInputs
from proxyprune.errors import VerificationError
from proxyprune.graph import ModelGraph
from proxyprune.plan import PrunePlan
from proxyprune.ranking import Ranking
from proxyprune.read import probe_groups, trace, with_pins
from proxyprune.scoring import Brief, Scorer, score
from proxyprune.solve import make_plan
from proxyprune.surgery import Surgery
from proxyprune.versions import made_with


@dataclass(frozen=True)
class Report:
    """What was done, in numbers and sentences.

    Attributes:
        base_macs: Multiply-accumulates before, attention included; FLOPs = 2 x MACs.
        macs: After.
        target_macs: The budget.
        base_params: Parameters before.
        params: After.
        conventional_macs: What the literature's counters see before and after: no attention products.
        pinned: Channel group -> why it could not be cut.
        unsupported_ops: Ops without an axis rule.
        uncosted_ops: Ops without a cost rule; their MACs are in no figure here.
        blocks: Block -> (MACs before, MACs after).
        notes: From the plan.
        block_params: Block -> (parameters before, parameters after).
        made_with: Package -> version.
        seconds: Measured wall time of one run before and after, or None when nobody measured it.
    """

    base_macs: int
    macs: int
    target_macs: int
    base_params: int
    params: int
    conventional_macs: tuple[int, int]
    pinned: Mapping[str, str] = field(repr=False)
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    blocks: Mapping[str, tuple[int, int]] = field(repr=False)
    notes: tuple[str, ...]
    block_params: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    made_with: Mapping[str, str] = field(default_factory=dict, repr=False)
    seconds: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": 1,
            "base_macs": self.base_macs,
            "macs": self.macs,
            "target_macs": self.target_macs,
            "base_params": self.base_params,
            "params": self.params,
            "conventional_macs": list(self.conventional_macs),
            "pinned": dict(self.pinned),
            "unsupported_ops": list(self.unsupported_ops),
            "uncosted_ops": list(self.uncosted_ops),
            "blocks": {block: list(macs) for block, macs in self.blocks.items()},
            "notes": list(self.notes),
            "block_params": {block: list(params) for block, params in self.block_params.items()},
            "made_with": dict(self.made_with),
            "seconds": None if self.seconds is None else list(self.seconds),
        }


@dataclass(frozen=True)
class PruneResult:
    """A pruned model and everything that led to it.

    Attributes:
        model: The pruned module, of the original's class.
        plan: What was cut.
        ranking: What the scorer said.
        report: Numbers before and after.
        surgery: Slices and attribute changes, as they were carried out.
        graph: The traced unpruned model.
    """

    model: nn.Module = field(repr=False)
    plan: PrunePlan
    ranking: Ranking = field(repr=False)
    report: Report
    surgery: Surgery = field(repr=False)
    graph: ModelGraph = field(repr=False)


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
    options |= {"allocation": allocation, "accept_unreliable": accept_unreliable}
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


def make_report(graph: ModelGraph, plan: PrunePlan) -> Report:
    """Numbers of a plan, before and after."""
    atoms = plan.atoms(graph)
    before = graph.cost.block_macs(graph.cost.full)
    after = graph.cost.block_macs(atoms, plan.removed_blocks)
    params_before = graph.cost.block_params(graph.cost.full)
    params_after = graph.cost.block_params(atoms, plan.removed_blocks)
    return Report(
        base_macs=plan.base_macs,
        macs=plan.macs,
        target_macs=plan.target_macs,
        base_params=plan.base_params,
        params=plan.params,
        conventional_macs=(
            graph.cost.conventional_macs(graph.cost.full),
            graph.cost.conventional_macs(atoms, plan.removed_blocks),
        ),
        pinned={group.id: group.pinned for group in graph.groups if group.pinned is not None},
        unsupported_ops=graph.unsupported_ops,
        uncosted_ops=graph.uncosted_ops,
        blocks={block: (before[block], after[block]) for block in before},
        notes=plan.notes,
        block_params={block: (params, params_after[block]) for block, params in params_before.items()},
        made_with=made_with(),
    )


__all__ = ["Applied", "PruneResult", "Report", "cut", "make_report", "prune"]
