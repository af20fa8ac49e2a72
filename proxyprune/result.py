"""Results of pruning: `PruneResult` and the numbers of its `Report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from proxyprune.compensation.report import CompensationReport
from proxyprune.graph.cost import CostModel
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planned_time import MeasuredTime
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.dataclass_json import to_plain
from proxyprune.support.summary import Summary
from proxyprune.support.versions import made_with
from proxyprune.support.wording import counted, seconds
from proxyprune.surgery.surgery import Surgery
from proxyprune.tracing.model_call import ExampleInputs


@dataclass(frozen=True)
class Losses:
    """Mean loss of the network at each stage; a stage that was not reached, or whose loss is not finite, has None.

    Attributes:
        measured_on: "held-out batches", which no scorer and no training saw, or "calibration batches".
        batches: Number of them.
        unpruned: Before the cut.
        cut: After it.
        compensated: After the refit of the remaining weights.
        recovered: After training.
        recover_steps: Updates of that training.
        learning_rate: Its rate.
    """

    measured_on: str
    batches: int
    unpruned: float | None = None
    cut: float | None = None
    compensated: float | None = None
    recovered: float | None = None
    recover_steps: int = 0
    learning_rate: float | None = None


@dataclass(frozen=True)
class Trial:
    """One scorer and mode that `scorer="auto"` tried.

    Attributes:
        scorer: Name.
        mode: "width", "depth" or "both".
        value: The measure on held-out batches; smaller is better. None if it was not measured, or is not finite.
        seconds: Time for scoring (by the first trial of a scorer), cutting, compensation and measuring.
        chosen: True for the trial that was taken.
        note: Why there is no value, or whose cut is the same; empty otherwise.
    """

    scorer: str
    mode: str
    value: float | None
    seconds: float
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Trials:
    """The table of `scorer="auto"`.

    Attributes:
        measure: "loss", or "relative output error" to the unpruned network.
        batches: Held-out batches that decided.
        tried: In the order of the trials.
        unmeasured: Scorers that the data does not allow -> the reason.
    """

    measure: str
    batches: int
    tried: tuple[Trial, ...]
    unmeasured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The work that was done, in numbers and sentences.

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
        notes: From the plan, and why the model's config cannot express the pruned network if it cannot.
        block_params: Block -> (parameters before, parameters after).
        made_with: Package -> version.
        seconds: Measured wall time of one run before and after, or None when nobody measured it.
        thop_macs: What thop counts before and after; None where it fails, or where nobody counted.
        time: Measured time of one run before and after with its spread, or None if it was not measured.
        unreached: Parameters that the example call does not reach; they stay whole.
        not_followed: Attribute -> why it kept its value although it equals a size that changed. Code that the example inputs do not reach
            (training, a cache, a method that fuses layers) may read it.
        compensation: What a refit of the remaining weights did, or None if there was none.
        losses: Mean loss before and after, or None if there was no loss.
        trials: Scorers that `scorer="auto"` tried, or None for another scorer.
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
    unreached: tuple[str, ...] = ()
    not_followed: Mapping[str, str] = field(default_factory=dict, repr=False)
    compensation: CompensationReport | None = field(default=None, repr=False)
    thop_macs: tuple[int, int] | None = None
    losses: Losses | None = None
    trials: Trials | None = field(default=None, repr=False)
    time: MeasuredTime | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        absent = {"unreached"} if not self.unreached else set()
        absent |= {name for name in ("compensation", "losses", "trials", "time") if getattr(self, name) is None}
        return {"schema": 1, **to_plain(self, omit=absent)}


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
        example_inputs: What it was traced on, if the result was made in this process.
    """

    model: nn.Module = field(repr=False)
    plan: PrunePlan
    ranking: Ranking = field(repr=False)
    report: Report
    surgery: Surgery = field(repr=False)
    graph: ModelGraph = field(repr=False)
    example_inputs: ExampleInputs | None = field(default=None, repr=False, compare=False)

    def with_notes(self, notes: tuple[str, ...]) -> PruneResult:
        """Return the same result with more notes in the plan and the report."""
        if not notes:
            return self
        plan = replace(self.plan, notes=(*self.plan.notes, *notes))
        return replace(self, plan=plan, report=replace(self.report, notes=(*self.report.notes, *notes)))

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self, *, ids: bool = False) -> Summary:
        """Return what was cut, and what it cost and costs now, on one screen; `print(result)` shows it.

        Args:
            ids: One row for each channel group, with its id instead of block and role.
        """
        plan = self.plan.summary(self.graph, ids=ids)
        notes = [note for note in self.report.notes if note not in plan.notes]
        if self.report.pinned:
            notes.append(f"{counted(len(self.report.pinned), 'channel group')} pinned; result.report.pinned has the reasons.")
        if self.report.not_followed:
            count = len(self.report.not_followed)
            notes.append(f"{counted(count, 'attribute')} kept an old size; result.report.not_followed has the reasons.")
        if self.report.seconds is not None:
            before, after = self.report.seconds
            notes.append(f"One run on the example inputs: {seconds(before)} before, {seconds(after)} after.")
        return replace(plan, title=plan.title.replace("Plan", f"Pruned {self.graph.model_class}", 1), notes=(*plan.notes, *notes))


def make_report(
    graph: ModelGraph,
    plan: PrunePlan,
    not_followed: Mapping[str, str] | None = None,
    *,
    counted: CostModel | None = None,
    config_note: str | None = None,
) -> Report:
    """Numbers of a plan, before and after.

    Args:
        graph: The trace of the unpruned network.
        plan: What was cut.
        not_followed: As in `Report`.
        counted: Cost of the pruned network's own run, if values decide its sizes.
        config_note: Why the model's config cannot express the pruned network, or None.
    """
    atoms = plan.atoms(graph)
    before = graph.cost.block_macs(graph.cost.full)
    after = graph.cost.block_macs(atoms, plan.removed_blocks) if counted is None else counted.block_macs(counted.full)
    conventional = graph.cost.conventional_macs(atoms, plan.removed_blocks) if counted is None else counted.conventional_macs(counted.full)
    params_before = graph.cost.block_params(graph.cost.full)
    params_after = graph.cost.block_params(atoms, plan.removed_blocks)
    return Report(
        base_macs=plan.base_macs,
        macs=plan.macs,
        target_macs=plan.target_macs,
        base_params=plan.base_params,
        params=plan.params,
        conventional_macs=(graph.cost.conventional_macs(graph.cost.full), conventional),
        pinned={group.id: group.pinned for group in graph.groups if group.pinned is not None},
        unsupported_ops=graph.unsupported_ops,
        uncosted_ops=graph.uncosted_ops,
        blocks={block: (before[block], after.get(block, 0)) for block in before},
        notes=plan.notes if config_note is None else (*plan.notes, config_note),
        block_params={block: (params, params_after[block]) for block, params in params_before.items()},
        made_with=made_with(),
        unreached=graph.unreached,
        not_followed=dict(not_followed or {}),
    )
