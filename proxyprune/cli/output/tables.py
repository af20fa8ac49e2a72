"""Results as tables for a reader."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from proxyprune.cli.output.fitting_table import FittingTable
from proxyprune.compensation.report import CompensationReport
from proxyprune.coupling.groups import ChannelGroup
from proxyprune.graph.group_names import group_names
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.structure import Block
from proxyprune.planning.plan import PrunePlan
from proxyprune.result import Losses, Trials
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import ScorerInfo
from proxyprune.support.summary import Bar, SummaryTable
from proxyprune.support.wording import figure, quantity

_SHOWN_LAYERS = 12  # layers of a compensation; the report has all
_SHOWN_PLACES = 3  # places named for each reason of pinning; the rest is counted


def ranking_table(graph: ModelGraph, ranking: Ranking) -> FittingTable:
    """All blocks, most important first."""
    times = {} if graph.cost.time is None else graph.cost.time.by_block(graph.cost.full)
    total = max(1, sum(times.values()))
    rows: list[tuple[str | Bar, ...]] = []
    for place, block_id in enumerate(ranking.order, start=1):
        block = graph.block_by_id[block_id]
        score = ranking.scores[block_id]
        resolution = "×".join(map(str, block.resolution))
        shares = (_share(block.macs, graph.macs), *([_share(times.get(block.id, 0), total)] if times else []))
        cells = (str(place), block.id, block.kind, _widths(block), resolution, quantity(block.macs), *shares)
        rows.append((*cells, f"{score:.3f}", Bar(score)))
    headings = ("#", "block", "kind", "widths", "resolution", "MACs", "share", *(["time"] if times else []), "score", "")
    table = SummaryTable(headings, tuple(rows), names=1, left=("kind",), optional=("MACs", "kind", "widths", "resolution"))
    return FittingTable(f"{len(graph.blocks)} blocks of {graph.model_class}, most important first ({ranking.scorer})", table)


def remarks(graph: ModelGraph, notes: Iterable[str], confidence: float | None = None) -> list[RenderableType]:
    """Return what a reader has to know before trusting the figures."""
    lines = []
    if confidence is not None:
        lines.append(f"Confidence (mean Kendall tau of repeated queries): {confidence:.2f}.")
    lines.extend(notes)
    if graph.unsupported_ops:
        lines.append(f"These ops have no axis rule, so the channels that they touch are pinned: {', '.join(graph.unsupported_ops)}.")
    if graph.uncosted_ops:
        lines.append(f"These ops have no cost rule, so their MACs are in no figure: {', '.join(graph.uncosted_ops)}.")
    if graph.unreached:
        lines.append(f"Not reached by the example call, so kept whole with every width they may share: {', '.join(graph.unreached)}.")
    return [Text(f"• {line}") for line in lines]


def warning(ranking: Ranking) -> Text | None:
    """Return the reason why a ranking should decide nothing; None for one that may."""
    if ranking.unreliable is None:
        return None
    return Text(f"UNRELIABLE: {ranking.unreliable} Planning rejects this ranking unless --accept-unreliable is given.", style="bold red")


def summary_table(plan: PrunePlan, *, conventional: tuple[int, int], thop: tuple[int, int] | None = None) -> Table:
    """MACs and parameters before and after, beside the target.

    Args:
        plan: The plan.
        conventional: MACs before and after without attention products, as papers count.
        thop: What thop itself counts; None where it fails.
    """
    table = _table(f"Plan: {plan.scorer} scores, mode {plan.mode}, seed {plan.seed}")
    for heading in ("", "before", "after", "left", "target", "gap to target"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading), min_width=None if heading else 18)
    rows = (
        ("MACs (exact, attention included)", plan.base_macs, plan.macs, plan.target_macs, "macs" in plan.metric.split(",")),
        ("parameters", plan.base_params, plan.params, plan.target_params, "params" in plan.metric.split(",")),
    )
    for label, before, after, target, budgeted in rows:
        gap = f"{target - after:,} ({(target - after) / before:.2%})" if budgeted else ""
        table.add_row(label, f"{before:,}", f"{after:,}", _share(after, before), f"{target:,}" if budgeted else "", gap)
    if plan.time is not None:
        limit = plan.time.target_nanoseconds
        cells = (_milliseconds(plan.time.base_nanoseconds), _milliseconds(plan.time.nanoseconds))
        gap = "" if limit is None else f"{(limit - plan.time.nanoseconds) / plan.time.base_nanoseconds:.2%}"
        left = _share(plan.time.nanoseconds, plan.time.base_nanoseconds)
        table.add_row("time of a run (predicted)", *cells, left, "" if limit is None else _milliseconds(limit), gap)
    for label, counts in _conventions(conventional, thop):
        table.add_row(label, f"{counts[0]:,}", f"{counts[1]:,}", _share(counts[1], counts[0]), "", "")
    return table


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:,.3f} ms"


def times_table(graph: ModelGraph) -> Table | None:
    """Predicted time by block, longest first; None for a graph without times."""
    if graph.cost.time is None:
        return None
    times = graph.cost.time.by_block(graph.cost.full)
    macs = graph.cost.block_macs(graph.cost.full)
    total = max(1, sum(times.values()))
    table = _table(f"Time of a run by block: {_milliseconds(total)} in all")
    for heading in ("block", "time", "of the time", "of the MACs"):
        table.add_column(heading, justify="left" if heading == "block" else "right")
    for block, nanoseconds in sorted(times.items(), key=lambda pair: -pair[1]):
        table.add_row(
            block or "outside all blocks",
            _milliseconds(nanoseconds),
            _share(nanoseconds, total),
            _share(macs.get(block, 0), max(1, graph.macs)),
        )
    return table


def widths_table(graph: ModelGraph, plan: PrunePlan, *, ids: bool = False) -> FittingTable:
    """Every channel group that is cut, by block and role or by id, and every block that is taken out."""
    names = {group.id: group.id for group in graph.groups} if ids else group_names(graph)
    removed = f", {_counted(len(plan.removed_blocks), 'block')} removed" if plan.removed_blocks else ""
    rows = []
    for group_id, (before, after) in plan.widths.items():
        group = graph.by_id[group_id]
        rows.append((names[group_id], f"{before} → {after}", _share(after, before), str(group.unit), str(_layers(group))))
    rows += [(block_id, "removed", "", "", "") for block_id in plan.removed_blocks]
    table = SummaryTable(("channel group", "channels", "left", "unit", "layers"), tuple(rows), optional=("unit", "layers"))
    return FittingTable(f"{len(plan.widths)} of {len(graph.prunable)} channel groups cut{removed}", table)


def pinned_table(graph: ModelGraph, *, ids: bool = False) -> Table | None:
    """Return what cannot be cut, by reason; None when everything can."""
    shown = {group.id: group.id for group in graph.groups} if ids else group_names(graph)
    places: dict[str, list[str]] = {}
    for group in graph.groups:
        if group.pinned is not None:
            places.setdefault(group.pinned, []).append(shown[group.id])
    if not places:
        return None
    table = _table(f"{_counted(sum(map(len, places.values())), 'channel group')} pinned, with the reason")
    table.add_column("why", overflow="fold")
    table.add_column("groups", justify="right")
    table.add_column("such as", no_wrap=True)
    for reason, names in places.items():
        table.add_row(reason, str(len(names)), "\n".join(names[:_SHOWN_PLACES]))
    return table


def compensation_table(report: CompensationReport | None) -> Table | None:
    """Layers that a compensation refitted or tried to, those with the largest error first; None if there are none."""
    if report is None or not report.layers:
        return None
    table = _table(f"{len(report.refitted)} of {_counted(len(report.layers), 'layer')} refitted")
    table.add_column("layer", no_wrap=True)
    for heading in ("held-out error as cut", "refitted", "ridge"):
        table.add_column(heading, justify="right")
    ordered = sorted(report.layers, key=lambda entry: -(entry.error_before or 0.0))
    for entry in ordered[:_SHOWN_LAYERS]:
        after, ridge = (figure(entry.error_after), f"{entry.ridge:g}") if entry.refitted else ("not refitted", "")
        table.add_row(entry.layer, figure(entry.error_before), after, ridge)
    if len(ordered) > _SHOWN_LAYERS:
        table.add_row(f"and {len(ordered) - _SHOWN_LAYERS} more", "", "", "")
    return table


def losses_table(losses: Losses | None) -> Table | None:
    """Mean loss before and after; None if there was no loss."""
    if losses is None or losses.unpruned is None:
        return None
    where = losses.measured_on if losses.batches > 1 else losses.measured_on.removesuffix("es")
    table = _table("Loss before and after")
    table.add_column("network", overflow="fold")
    table.add_column(f"mean loss on {losses.batches} {where}", justify="right")
    trained = f"after {_counted(losses.recover_steps, 'step')} of training"
    stages = (("unpruned", losses.unpruned), ("cut", losses.cut), ("compensated", losses.compensated), (trained, losses.recovered))
    reached = [True, True, losses.compensated is not None, losses.recover_steps > 0]
    for (stage, value), shown in zip(stages, reached, strict=True):
        if shown:
            table.add_row(stage, figure(value))
    return table


def trials_table(trials: Trials | None) -> Table | None:
    """Scorers that were tried, best first; None if the scorer was given."""
    if trials is None:
        return None
    table = _table(f"Scorers tried, by {trials.measure} on held-out batches")
    for heading in ("scorer", "mode"):
        table.add_column(heading)
    table.add_column(trials.measure, justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("", overflow="fold")
    for trial in sorted(trials.tried, key=lambda each: (not each.chosen, math.inf if each.value is None else each.value)):
        about = "used" if trial.chosen else trial.note
        table.add_row(trial.scorer, trial.mode, "" if trial.value is None else figure(trial.value), f"{trial.seconds:.1f}", about)
    for scorer, why in trials.unmeasured.items():
        table.add_row(scorer, "", "", "", why)
    return table


def scorers_table(infos: Iterable[ScorerInfo]) -> Table:
    """Return registered scorers; the broken ones with their error."""
    table = _table(None)
    table.add_column("scorer", no_wrap=True)
    table.add_column("from", overflow="fold")
    table.add_column("needs")
    table.add_column("what it does", overflow="fold", ratio=1)
    for info in infos:
        about = Text(f"cannot be used: {info.error}", style="red") if info.error else Text(info.summary)
        needs = "" if info.needs is None else ", ".join(info.needs) or "structure only"
        table.add_row(info.name, info.origin, needs, about)
    return table


def _conventions(conventional: tuple[int, int], thop: tuple[int, int] | None) -> list[tuple[str, tuple[int, int]]]:
    if thop == conventional:
        return [("MACs as papers count (thop; no attention products)", conventional)]
    by_thop = [] if thop is None else [("MACs by thop itself (norms and pooling counted too)", thop)]
    return [("MACs as papers count (no attention products)", conventional), *by_thop]


def _table(title: str | None) -> Table:
    title = None if title is None else f"\n{title}"  # a line between tables
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _widths(block: Block) -> str:
    before, after = ("?" if width is None else str(width) for width in block.widths)
    return "" if block.widths == (None, None) else f"{before} → {after}"


def _layers(group: ChannelGroup) -> int:
    """Modules that hold a slice of the group."""
    return len({member.parameter.rpartition(".")[0] for member in group.members})
