"""Exact widths that a proposer gives: checked against what each group may have, and planned within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from proxyprune.errors import InputError, KeepPatternError, TargetError, VerificationError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.constraints import UNROUNDED, resolve
from proxyprune.planning.limits import Limits
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.request import PlanRequest
from proxyprune.proxy.answers.widths import shown_widths

NO_PLAN = (TargetError, VerificationError, KeepPatternError, InputError)
"""Errors that say that limits cannot be followed."""


@dataclass(frozen=True)
class PlannedWidths:
    """Widths that a plan has.

    Attributes:
        widths: Channels by group.
        request: What was asked of the plan, with these widths.
        plan: The plan.
        notes: Why other widths were left out.
    """

    widths: Mapping[str, int]
    request: PlanRequest
    plan: PrunePlan = field(repr=False)
    notes: tuple[str, ...] = ()


def possible_widths(graph: ModelGraph, limits: Limits) -> dict[str, tuple[int, ...]]:
    """Return the channels that each prunable group may have within limits and at the multiples that they ask for, ascending."""
    found = {}
    for group, allowed in zip(graph.prunable, resolve(graph, limits).allowed, strict=True):
        counts = allowed.counts[(allowed.phases & UNROUNDED) == 0]
        found[group.id] = tuple(sorted(int(count) * group.atom_channels for count in counts))
    return found


def width_problem(group: str, channels: object, possible: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return why a group cannot have a width, or None."""
    if group not in possible:
        return f"'{group}' is no channel group that can be cut"
    if isinstance(channels, bool) or channels not in possible[group]:
        return f"group '{group}' cannot have {channels!r} channels; possible are {shown_widths(possible[group])}"
    return None


def planned_widths(
    request: PlanRequest,
    plan: PrunePlan,
    widths: Mapping[str, int],
    possible: Mapping[str, tuple[int, ...]],
    make_plan: Callable[[PlanRequest], PrunePlan],
) -> PlannedWidths:
    """Plan with as many of the widths as a plan can have, the first ones first.

    Args:
        request: What is asked of the plan otherwise.
        plan: The plan without the widths.
        widths: Channels by group, the most important first.
        possible: What each group may have; see `possible_widths`.
        make_plan: Makes a plan within the budget, or raises.
    """
    problems = {group: width_problem(group, channels, possible) for group, channels in widths.items()}
    notes = [f"A width was left out: {problem}." for problem in problems.values() if problem is not None]
    fitting = [(group, int(channels)) for group, channels in widths.items() if problems[group] is None]
    if request.mode == "depth" and fitting:
        return PlannedWidths({}, request, plan, (*notes, "Widths were left out: mode 'depth' cuts none."))
    count, most, refusal = 0, len(fitting), ""  # more widths never make a plan easier, so bisection finds the most
    tried, best = most, request
    while count < most:
        asked = with_widths(request, dict(fitting[:tried]))
        try:
            found = make_plan(asked)
        except NO_PLAN as error:
            most, refusal = tried - 1, str(error)
        else:
            count, plan, best = tried, found, asked
        tried = (count + most + 1) // 2
    if refusal:
        left = ", ".join(f"'{group}' at {channels}" for group, channels in fitting[count:])
        notes.append(f"Widths were left out, because no plan can have them beside the first {count}: {left}. {refusal}")
    return PlannedWidths(dict(fitting[:count]), best, plan, tuple(notes))


def with_widths(request: PlanRequest, widths: Mapping[str, int]) -> PlanRequest:
    """Return the request with a floor and a ceiling of the same number of channels for each group."""
    limits = request.limits
    return replace(request, limits=replace(limits, floors={**limits.floors, **widths}, ceilings={**limits.ceilings, **widths}))
