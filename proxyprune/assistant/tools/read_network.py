"""Tools that read the network: `describe`, `source`, `price`. They cut and measure nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxyprune.assistant.arguments import DescribeArguments, PriceArguments, SourceArguments
from proxyprune.assistant.context import CallContext
from proxyprune.assistant.state import ONE_SHOT
from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import AssistantError, InputError, UnknownNameError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.structure import Block
from proxyprune.graph.text import block_dict
from proxyprune.support.checks import is_count, listed
from proxyprune.tracing.source_code import class_name, class_source


def describe(context: CallContext, arguments: DescribeArguments) -> dict[str, Any]:
    """Return the network as text, with the goal and the limits of the session, or one block with its channel groups."""
    graph = context.task.graph
    if arguments.block is not None:
        block = _block(graph, arguments.block)
        return {**block_dict(block), "channel_groups": [_group(graph.by_id[group]) for group in block.groups]}
    goal, budgets = context.task.goal, context.task.budgets
    base = _alone({metric: budget.base for metric, budget in budgets.items()})
    limit = _alone({metric: budget.limit for metric, budget in budgets.items()})
    return {
        "model_class": graph.model_class,
        "goal": {"metric": goal.metric, "base": base, "at_most": limit, "mode": goal.mode, "keep": list(goal.limits.keep)},
        "scorers": list(context.task.scorers),
        "one_shot_plan": ONE_SHOT,
        "can_measure": _measurable(context),
        "data": None if context.task.data is None else context.task.data.note,
        **_page(context, graph.to_text(), arguments.offset),
    }


def source(context: CallContext, arguments: SourceArguments) -> dict[str, Any]:
    """Return the source code of a block's class.

    Raises:
        AssistantError: If the session does not show source code, or the class has none.
    """
    if not context.task.show_source:
        raise AssistantError("This session does not show source code. Use describe.")
    block = _block(context.task.graph, arguments.block)
    module = context.task.model.get_submodule(block.id)
    text = class_source(module)
    if text is None:
        raise AssistantError(f"The class {type(module).__qualname__} of block {block.id!r} has no source code that can be read.")
    return {"block": block.id, "class": class_name(module), **_page(context, text, arguments.offset)}


def price(context: CallContext, arguments: PriceArguments) -> dict[str, Any]:
    """Return what widths would cost, rounded to what the channel groups allow; nothing is planned."""
    graph, budgets = context.task.graph, context.task.budgets
    removed = [_removable(graph, name) for name in arguments.remove]
    atoms = graph.cost.full.copy()
    widths = {}
    for index, group, wanted in _wanted(graph, arguments.widths):
        atoms[index] = _allowed_atoms(group, wanted)
        widths[group.id] = [group.width, int(atoms[index]) * group.atom_channels]
    macs, params = graph.cost.macs(atoms, removed), graph.cost.params(atoms, removed)
    time = None if graph.cost.time is None else graph.cost.time.total(atoms, removed)
    spent = {"macs": macs, "params": params, "time": time or 0}
    over = {metric: max(0, spent[metric] - budget.limit) for metric, budget in budgets.items()}
    return {
        "macs": macs,
        "params": params,
        "share_of_macs": round(macs / graph.macs, 6) if graph.macs else 1.0,
        "share_of_params": round(params / graph.params, 6) if graph.params else 1.0,
        **({} if time is None else {"nanoseconds": time}),
        "within_budget": not any(over.values()),
        "over_budget_by": _alone(over),
        "widths": widths,
        "blocks": _block_shares(graph, atoms, removed),
    }


def _alone(by_metric: dict[str, int]) -> int | dict[str, int]:
    """Return the amount of the only metric, or amounts by metric."""
    return next(iter(by_metric.values())) if len(by_metric) == 1 else by_metric


def _block(graph: ModelGraph, name: str) -> Block:
    if name not in graph.block_by_id:
        raise UnknownNameError(f"No block has the id {name[:80]!r}. There are {listed(graph.block_by_id, 8)}.")
    return graph.block_by_id[name]


def _removable(graph: ModelGraph, name: str) -> str:
    block = _block(graph, name)
    if not block.removable:
        raise InputError(f"Block {name!r} cannot be removed: the network would not run without it.")
    return block.id


def _measurable(context: CallContext) -> list[str]:
    task = context.task
    return [kind for kind, given in (("loss", task.data), ("quality", task.quality), ("seconds", task)) if given is not None]


def _page(context: CallContext, text: str, offset: int) -> dict[str, Any]:
    """Return a part of a text that fits into half an answer, because JSON may write a character as several."""
    length = context.bounds.answer_chars // 2
    part = text[offset : offset + length]
    end = offset + len(part)
    return {"text": part, "offset": offset, "characters": len(text), "next_offset": end if end < len(text) else None}


def _group(group: ChannelGroup) -> dict[str, Any]:
    least = group.floor * group.atom_channels
    return {"id": group.id, "width": group.width, "unit": group.unit, "least": least, "pinned": group.pinned, "blocks": list(group.blocks)}


def _wanted(graph: ModelGraph, widths: Mapping[str, float | int]) -> list[tuple[int, ChannelGroup, float | int]]:
    """Index, group and wanted width of each group that is named, alone or through its block."""
    order = {group.id: index for index, group in enumerate(graph.prunable)}
    found = []
    for name, wanted in widths.items():
        if not is_count(wanted, 1) and not (isinstance(wanted, float) and 0.0 <= wanted <= 1.0):
            raise InputError(
                f"The width of {name[:80]!r} must be a fraction (0.0 to 1.0) or a number of channels (from 1 up), found {wanted!r}."
            )
        group = graph.by_id.get(name)
        if group is not None and group.pinned is not None:
            raise InputError(f"Channel group {name!r} is pinned: {group.pinned}.")
        ids = [name] if group is not None else list(_block(graph, name).inner)
        found += [(order[each], graph.by_id[each], wanted) for each in ids]
    return found


def _allowed_atoms(group: ChannelGroup, wanted: float | int) -> int:
    """Most atoms in whole steps that are no wider than wanted, and at least the group's floor."""
    channels = wanted * group.width if isinstance(wanted, float) else wanted
    atoms = min(group.atoms, int(channels // group.atom_channels))
    steps = -(-(group.atoms - atoms) // group.step)
    return max(group.floor, group.atoms - steps * group.step)


def _block_shares(graph: ModelGraph, atoms: NDArray[np.int64], removed: list[str]) -> dict[str, float]:
    """Share of its MACs that each block would keep, for blocks that lose some."""
    before, after = graph.cost.block_macs(graph.cost.full), graph.cost.block_macs(atoms, removed)
    return {block: round(after[block] / macs, 4) for block, macs in before.items() if macs and after[block] < macs}
