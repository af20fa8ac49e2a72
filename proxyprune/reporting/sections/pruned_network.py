"""The sections about one network: graph, ranking, cost and widths before and after, what was pinned, where it all comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from proxyprune.graph.structure import Block
from proxyprune.reporting.draw.charts import pair_bar, share_bar
from proxyprune.reporting.draw.network_map import Shades, Shown, network_map, overview
from proxyprune.reporting.page import Column, Details, Illustration, Part, Remarks, Row, Section, Table, TableCell
from proxyprune.reporting.read.read_result import Result
from proxyprune.reporting.read.result_records import flat
from proxyprune.support.checks import listed
from proxyprune.support.wording import counted, figure, quantity, share
from proxyprune.tracing.names import is_inside

_MOST_NAMES = 12


def remarks(result: Result) -> Section | None:
    """Return what to know before trusting a figure."""
    warnings = list(result.warnings)
    if result.ranking is not None and result.ranking.unreliable:
        warnings.insert(0, f"The ranking is marked unreliable: {result.ranking.unreliable}")
    unpriced, unruled = _ops(result)
    if unpriced:
        warnings.append(f"These ops have no cost rule, so their MACs are in no figure: {', '.join(unpriced)}.")
    notes = list(result.plan.notes) if result.plan is not None else [] if result.figures is None else list(result.figures.notes)
    notes += [] if result.ranking is None else [note for note in result.ranking.notes if note not in notes]
    notes += [] if result.comparison is None else list(result.comparison.notes)
    notes += [] if result.diffusion is None else list(result.diffusion.notes)
    if unruled:
        notes.append(f"These ops have no axis rule, so the channels that they touch are pinned: {', '.join(unruled)}.")
    parts: list[Part] = []
    if warnings:
        parts.append(Remarks(tuple(warnings), "warning"))
    if notes:
        parts.append(Remarks(tuple(notes)))
    return Section("notes", "Before you trust a figure" if warnings else "Notes", "", tuple(parts)) if parts else None


def _ops(result: Result) -> tuple[tuple[str, ...], tuple[str, ...]]:
    told = result.figures or result.structure
    return ((), ()) if told is None else (told.uncosted_ops, told.unsupported_ops)


def graph(result: Result) -> Section | None:
    """Return the network, drawn."""
    structure = result.structure
    if structure is None or not structure.blocks:
        return None
    shown = {block.id: _shown(result, block) for block in structure.blocks}
    scored = any(entry.score is not None for entry in shown.values())
    shades = _shades(result)
    told = ["Each box is a block, numbered in execution order as in the tables below. Each row is a resolution."]
    if scored:
        told.append("The colour shows the block's position in the ranking, in tenths.")
    if any(entry.kept is not None for entry in shown.values()):
        told.append("The line under a box shows the share of its MACs that is left. A dashed box was removed.")
    told.append("Skip connections run above their row.")
    caption = "The block graph, coloured by rank" if scored else "The block graph"
    drawing = Illustration(
        caption, network_map(structure, shown, shades), shades.legend() if scored else (), natural=True, glance=overview(structure)
    )
    return Section("graph", "The network", " ".join(told), (drawing,))


def _shades(result: Result) -> Shades:
    return Shades.over(() if result.ranking is None else result.ranking.scores.values())


def _shown(result: Result, block: Block) -> Shown:
    score = None if result.ranking is None else result.ranking.scores.get(block.id)
    removed = result.plan is not None and any(is_inside(block.id, gone) for gone in result.plan.removed_blocks)
    macs = None if result.figures is None else result.figures.block_macs.get(block.id)
    kept = macs[1] / macs[0] if macs is not None and macs[0] else None
    return Shown(score, None if result.plan is None else kept, removed)


def ranking(result: Result) -> Section | None:
    """Blocks by importance, and how far the order can be trusted."""
    found = result.ranking
    if found is None or not found.scores:
        return None
    blocks = {} if result.structure is None else {block.id: block for block in result.structure.blocks}
    numbers = {name: index + 1 for index, name in enumerate(blocks)}
    total = sum(block.macs for block in blocks.values())
    columns = [Column("rank", True), Column("block"), Column("importance", True)]
    columns += [Column("kind"), Column("share of MACs", True)] if blocks else []
    rows = []
    for rank, name in enumerate(found.order, start=1):
        score, block = found.scores[name], blocks.get(name)
        cells = [TableCell(str(rank), tone="quiet"), _block_cell(name, numbers), TableCell(f"{score:.3f}", share_bar(score))]
        if blocks:
            cells += [
                TableCell("" if block is None else block.kind, tone="quiet"),
                TableCell("" if block is None else share(block.macs, total)),
            ]
        rows.append(Row(tuple(cells)))
    table = Table(f"{counted(len(rows), 'block')}, most important first", tuple(columns), tuple(rows))
    lead = "The best blocks to prune have a low importance and a large share of the MACs."
    return Section("ranking", "Ranking", lead, (Details(tuple(_trust(result))), table))


def _trust(result: Result) -> Iterator[tuple[str, str]]:
    found = result.ranking
    if found is None:
        return
    yield "scorer", found.scorer
    yield "seed", str(found.seed)
    if found.confidence is None:
        yield "confidence", "one answer, so there is no agreement to measure"
    else:
        yield "confidence", f"{found.confidence:.2f} (mean Kendall tau of repeated answers: 1 agrees fully, 0 is chance)"
    yield "reliability", found.unreliable or "not marked as unreliable"
    names = {"provider": "service", "model": "model", "samples": "samples", "requests": "requests", "replayed": "replies from the cache"}
    for key, label in names.items():
        if key in result.asked:
            yield label, result.asked[key]


def cost(result: Result) -> Section | None:
    """MACs and parameters by block."""
    rows = list(_cost_rows(result))
    if not rows:
        return None
    cut = result.figures is not None
    most_macs = max(entry[1][0] for entry in rows)
    most_params = max((entry[2][0] for entry in rows), default=0)
    numbers = {} if result.structure is None else {block.id: index + 1 for index, block in enumerate(result.structure.blocks)}
    removed = () if result.plan is None else result.plan.removed_blocks
    columns = (
        Column("#", True),
        Column("block"),
        Column("kind"),
        Column("MACs", True),
        Column("left", True),
        Column("parameters", True),
        Column("left", True),
    )
    shown = [column for index, column in enumerate(columns) if cut or index not in (4, 6)]
    table = []
    for name, macs, params, kind in rows:
        gone = any(is_inside(name, other) for other in removed)
        number = numbers.get(name)
        cells = [
            TableCell("" if number is None else str(number), tone="quiet"),
            TableCell(name or "outside every block", tone="" if name else "quiet"),
            TableCell("removed" if gone else kind, tone="bad" if gone else "quiet"),
            TableCell(_change(macs, cut), pair_bar(macs[0], macs[1], most_macs)),
            TableCell(share(macs[1], macs[0])),
            TableCell(_change(params, cut), pair_bar(params[0], params[1], most_params)),
            TableCell(share(params[1], params[0])),
        ]
        anchor = "" if number is None else f"block-{number}"
        table.append(Row(tuple(cell for index, cell in enumerate(cells) if cut or index not in (4, 6)), anchor))
    what = "MACs and parameters by block, before and after" if cut else "MACs and parameters by block"
    lead = "In execution order. The pale bar is the cost before, the full bar the cost after. MACs include attention."
    return Section("cost", "Cost by block", lead, (Table(what, tuple(shown), tuple(table)),))


def _cost_rows(result: Result) -> Iterator[tuple[str, tuple[int, int], tuple[int, int], str]]:
    """Name, MACs and parameters before and after, kind; in the order of the structure where there is one."""
    blocks = () if result.structure is None else result.structure.blocks
    if result.figures is None:
        for block in blocks:
            yield block.id, (block.macs, block.macs), (block.params, block.params), block.kind
        return
    known = {block.id: block for block in blocks}
    macs, params = result.figures.block_macs, result.figures.block_params
    for name in dict.fromkeys([*known, *macs, *params]):
        fallback = (known[name].params,) * 2 if name in known and not params else (0, 0)
        entry = macs.get(name, (0, 0)), params.get(name, fallback)
        if name in known or any(map(any, entry)):
            yield name, *entry, known[name].kind if name in known else ""


def _change(pair: tuple[int, int], cut: bool) -> str:
    return f"{quantity(pair[0])} → {quantity(pair[1])}" if cut and pair[0] != pair[1] else quantity(pair[0])


def widths(result: Result) -> Section | None:
    """Channel groups before and after."""
    plan = result.plan
    if plan is None or not (plan.widths or plan.removed_blocks):
        return None
    most = max((before for before, _ in plan.widths.values()), default=1)
    units = {} if result.structure is None else {group.id: group.unit for group in result.structure.groups}
    whole = [] if result.structure is None else [g for g in result.structure.groups if g.pinned is None and g.id not in plan.widths]
    rows = [
        Row(
            (
                TableCell(result.group_names[name]),
                TableCell(f"{before} → {after}", pair_bar(before, after, most)),
                TableCell(share(after, before)),
                TableCell(name, tone="quiet"),
                TableCell(str(units.get(name, "")), tone="quiet"),
            )
        )
        for name, (before, after) in plan.widths.items()
    ]
    columns = [Column("channel group"), Column("channels", True), Column("left", True), Column("id"), Column("in steps of", True)]
    if not any(units.get(name) for name in plan.widths):
        columns, rows = columns[:4], [Row(row.cells[:4]) for row in rows]
    parts: list[Part] = [Table(f"{counted(len(rows), 'channel group')} cut", tuple(columns), tuple(rows))] if rows else []
    if plan.removed_blocks:
        parts.append(Remarks((f"Blocks removed as a whole: {', '.join(plan.removed_blocks)}.",)))
    if whole:
        names = listed((result.group_names[group.id] for group in whole), _MOST_NAMES)
        parts.append(Remarks((f"Can be cut, but this plan keeps them whole: {names}.",)))
    lead = "A channel group contains all slices that must shrink together, in one or many layers. Its name is its block and role."
    return Section("widths", "Widths before and after", lead, tuple(parts))


def compensation(result: Result) -> Section | None:
    """Layers that were refitted after the cut, and what that changed."""
    found = None if result.figures is None else result.figures.compensation
    if found is None:
        return None
    rows = [
        Row(
            (
                TableCell(entry.layer),
                TableCell(figure(entry.error_before)),
                TableCell(figure(entry.error_after) if entry.refitted else "not refitted", tone="" if entry.refitted else "quiet"),
                TableCell(f"{entry.ridge:g}" if entry.refitted else "", tone="quiet"),
            )
        )
        for entry in found.layers
    ]
    columns = (Column("layer"), Column("error as cut", True), Column("error refitted", True), Column("ridge", True))
    details = (
        (f"{found.measure} as cut", figure(found.before)),
        (f"{found.measure} at the end", figure(found.after)),
        ("held-out batches", str(found.held_out_batches)),
        ("verdict", "the refitted weights were kept" if found.accepted else "rejected: all weights are as after the cut"),
    )
    parts: list[Part] = [Details(details)]
    parts += [Table(f"{counted(len(rows), 'layer')} that could be refitted", columns, tuple(rows))] if rows else []
    parts += [Remarks(tuple(f"{name} was not compensated: {why}." for name, why in found.skipped.items()))] if found.skipped else []
    lead = "The error is that of the layer's output, relative to its square, on batches that were not used for the fit."
    return Section("compensation", "Compensation", lead, tuple(parts))


def losses(result: Result) -> Section | None:
    """Return the loss at each stage of pruning."""
    found = None if result.figures is None else result.figures.losses
    if found is None:
        return None
    stages = [("unpruned", found.unpruned), ("cut", found.cut)]
    stages += [] if found.compensated is None else [("compensated", found.compensated)]
    stages += [(f"after {counted(found.recover_steps, 'step')} of training", found.recovered)] if found.recover_steps else []
    details = Details(tuple((name, figure(value)) for name, value in stages))
    lead = f"Mean loss on {found.batches} {found.measured_on}."
    return Section("losses", "Loss before and after", lead, (details,))


def trials(result: Result) -> Section | None:
    """Return the scorers that were tried, best first."""
    found = None if result.figures is None else result.figures.trials
    if found is None:
        return None
    ordered = sorted(found.tried, key=lambda trial: (not trial.chosen, math.inf if trial.value is None else trial.value))
    rows = [
        Row(
            (
                TableCell(trial.scorer),
                TableCell(trial.mode),
                TableCell(figure(trial.value)),
                TableCell(figure(trial.seconds, 3), tone="quiet"),
                TableCell("used" if trial.chosen else trial.note, tone="" if trial.chosen else "quiet"),
            )
        )
        for trial in ordered
    ]
    columns = (Column("scorer"), Column("mode"), Column(found.measure, True), Column("seconds", True), Column(""))
    table = Table(f"{counted(len(rows), 'trial')} on held-out batches ({found.batches})", columns, tuple(rows))
    return Section("trials", "Scorers tried", "Each cut was measured on batches that no scorer and no refit used.", (table,))


def pinned(result: Result) -> Section | None:
    """Return what cannot be cut, and why."""
    reasons = _reasons(result)
    if not reasons:
        return None
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    rows = [Row((TableCell(why), TableCell(str(len(ids))), _group_cell(result, ids))) for why, ids in by_reason.items()]
    columns = (Column("reason"), Column("groups", True), Column("names"))
    lead = "A width that cannot be changed safely stays whole."
    return Section("pinned", "Pinned, and why", lead, (Table(f"{counted(len(reasons), 'channel group')} pinned", columns, tuple(rows)),))


def kept_as_they_are(result: Result) -> Section | None:
    """Parameters that the example calls do not reach, and attributes that they do not use as sizes."""
    figures = result.figures
    if figures is None or not (figures.unreached or figures.not_followed):
        return None
    parts: list[Part] = []
    if figures.unreached:
        rows = [Row((TableCell(name),)) for name in figures.unreached]
        caption = f"{counted(len(rows), 'parameter')} that no example call reaches"
        parts.append(Table(caption, (Column("parameter"),), tuple(rows)))
    if figures.not_followed:
        rows = [Row((TableCell(name), TableCell(why))) for name, why in figures.not_followed.items()]
        caption = f"{counted(len(rows), 'attribute')} that no example call uses as a size"
        parts.append(Table(caption, (Column("attribute"), Column("why it stays")), tuple(rows)))
    lead = "Parameters that no example call reaches stay whole. Other methods may use the attributes as sizes. also=[...] adds calls."
    return Section("kept", "Kept as it was", lead, tuple(parts))


def _reasons(result: Result) -> Mapping[str, str]:
    if result.figures is not None:
        return result.figures.pinned
    groups = () if result.structure is None else result.structure.groups
    return {group.id: group.pinned for group in groups if group.pinned is not None}


def provenance(result: Result) -> Section:
    """Return what the figures were made from and with."""
    pairs = [("read from", result.name), ("kind of result", result.kind)]
    pairs += [("network", result.model_class)] if result.model_class else []
    fingerprint = _fingerprint(result)
    pairs += [("structure's fingerprint", fingerprint)] if fingerprint else []
    if result.plan is not None:
        plan = result.plan
        pairs += [("plan's hash", plan.sha256), ("target", f"{plan.target} of the {_metric(plan.metric)}"), ("mode", plan.mode)]
        pairs += [("plan by", f"{plan.scorer}, seed {plan.seed}")]
        pairs += [
            (f"option {name}", value) for name, value in flat(plan.options).items() if name != "amendments" and "amendments." not in name
        ]
    elif result.ranking is not None:
        pairs += [("scored by", f"{result.ranking.scorer}, seed {result.ranking.seed}")]
    pairs += [(f"requests: {name}", value) for name, value in result.asked.items()]
    for settings in (result.search, result.comparison, result.diffusion):
        pairs += [] if settings is None else list(settings.settings.items())
    versions = [(name, version) for name, version in result.made_with.items()]
    lead = "The same network, inputs, seed, recorded answers and versions give the same result, byte for byte."
    parts: list[Part] = [Details(tuple(pairs))]
    parts.append(Details(tuple(versions)) if versions else Remarks(("The file does not contain the versions that made it.",)))
    return Section("provenance", "Provenance", lead, tuple(parts))


def _fingerprint(result: Result) -> str:
    if result.plan is not None:
        return result.plan.fingerprint
    if result.structure is not None and result.structure.fingerprint:
        return result.structure.fingerprint
    return "" if result.comparison is None else result.comparison.fingerprint


def _metric(name: str) -> str:
    return "parameters" if name == "params" else "MACs"


def _block_cell(name: str, numbers: Mapping[str, int]) -> TableCell:
    return TableCell(name, target=f"block-{numbers[name]}" if name in numbers else "")


def _group_cell(result: Result, ids: Sequence[str]) -> TableCell:
    """Names of channel groups, with their ids as the hint."""
    names = listed([result.group_names[group] for group in ids], _MOST_NAMES)
    return TableCell(names, tone="quiet", hint=listed(ids, _MOST_NAMES))
