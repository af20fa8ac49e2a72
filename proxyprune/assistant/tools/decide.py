"""Tools that decide what to cut: `score`, `plan`. They cut nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from proxyprune.assistant.arguments import PlanArguments, ScoreArguments
from proxyprune.assistant.context import CallContext
from proxyprune.assistant.task import PruningTask
from proxyprune.errors import AssistantError, InputError, TargetError, UnknownNameError
from proxyprune.planning.limits import Bound, Limits
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.run_scorer import check_ranking
from proxyprune.scoring.tools.channel_prior import with_block_prior
from proxyprune.scoring.tools.scale import DECIMALS
from proxyprune.searching.round import kept_shares
from proxyprune.support.checks import listed

ASSISTANT = "assistant"
"""Scorer name of rankings with an assistant's own scores."""


def score(context: CallContext, arguments: ScoreArguments) -> dict[str, Any]:
    """Rank the blocks with a scorer, or with the assistant's own scores on the channels of another ranking.

    Raises:
        InputError: If neither or both are given, or a score is out of range.
    """
    if (arguments.scorer is None) == (not arguments.scores):
        raise InputError("Give either scorer, or your own scores.")
    named = arguments.scorer
    ranking = _own(context, arguments) if named is None else context.task.ranked(named, context.deadline)
    name = context.state.new_ranking(ranking)
    return {
        "ranking": name,
        "scorer": ranking.scorer,
        "scores": {block: round(value, DECIMALS) for block, value in ranking.scores.items()},
        "has_channel_scores": bool(ranking.channel_scores),
        "channels_compare_across_groups": ranking.comparable_channels,
        "notes": list(ranking.notes),
    }


def plan(context: CallContext, arguments: PlanArguments) -> dict[str, Any]:
    """Make a plan within the session's budget and limits.

    Raises:
        TargetError: If the target is above the session's budget, or no plan reaches it.
        ProxyPruneError: From planning.
    """
    task = context.task
    request = _request(task, arguments)
    ranking = context.state.ranking(arguments.ranking)
    made = plan_for(task.graph, ranking, request, model=task.model)
    check_within_budget(task, made)
    name, new = context.state.new_plan(made, arguments.ranking)
    return {"plan": name, "is_new": new, **plan_summary(task, made), "notes": list(made.notes)}


def check_within_budget(task: PruningTask, made: PrunePlan) -> None:
    """Raise if a plan costs more than the session's budget. The solver never makes one; this holds the promise where it is given.

    Raises:
        AssistantError: If it does.
    """
    for metric, budget in task.budgets.items():
        spent = {"macs": made.macs, "params": made.params, "time": 0 if made.time is None else made.time.nanoseconds}[metric]
        if spent > budget.limit:
            raise AssistantError(f"The plan costs {spent:,} {budget.unit}, above the budget of {budget.limit:,}. It is not used.")


def plan_summary(task: PruningTask, made: PrunePlan) -> dict[str, Any]:
    """Return cost, widths and removed blocks of a plan."""
    timed = {} if made.time is None else {"nanoseconds": made.time.nanoseconds, "share_of_time": round(made.time.ratio, 6)}
    return {
        "macs": made.macs,
        "params": made.params,
        **timed,
        "share_of_macs": round(made.macs / made.base_macs, 6) if made.base_macs else 1.0,
        "share_of_params": round(made.params / made.base_params, 6) if made.base_params else 1.0,
        "mode": made.mode,
        "target": made.target,
        "removed_blocks": list(made.removed_blocks),
        "blocks": {block: share for block, share in kept_shares(task.graph, made).items() if share < 1.0},
        "widths": {group: list(pair) for group, pair in made.widths.items()},
    }


def _own(context: CallContext, arguments: ScoreArguments) -> Ranking:
    graph = context.task.graph
    base = context.state.ranking(arguments.base)
    unknown = [name for name in arguments.scores if name not in graph.block_by_id]
    if unknown:
        raise UnknownNameError(f"No block has the id {listed((repr(name[:80]) for name in unknown), 5)}. describe lists the blocks.")
    wrong = {name: value for name, value in arguments.scores.items() if not 0.0 <= value <= 1.0}
    if wrong:
        raise InputError(f"Scores must lie in [0, 1]; found {listed((f'{name}: {value!r}' for name, value in wrong.items()), 5)}.")
    scores = {block: arguments.scores.get(block, value) for block, value in base.scores.items()}
    ranking = with_block_prior(graph, base, scores, arguments.strength)
    note = (
        f"{len(arguments.scores)} of {len(scores)} block scores by the assistant, with weight {arguments.strength:g} on the channels of "
        f"{arguments.base}."
    )
    ranking = replace(ranking, scorer=ASSISTANT, confidence=None, unreliable=None, notes=(note,))
    return check_ranking(graph, ranking, ASSISTANT)


def _request(task: PruningTask, arguments: PlanArguments) -> PlanRequest:
    """Return the session's goal, tightened by the arguments."""
    goal = task.goal
    limits = Limits(
        keep=(*goal.limits.keep, *arguments.keep),
        floors=_tightened("floor", goal.limits.floors, arguments.floors),
        ceilings=_tightened("ceiling", goal.limits.ceilings, arguments.ceilings),
        round_to=goal.limits.round_to if arguments.round_to is None else arguments.round_to,
    )
    if arguments.target is not None and len(goal.targets) > 1:
        raise InputError(f"The session has several budgets ({', '.join(goal.targets)}), which hold for every plan. Omit target.")
    request = replace(
        goal,
        target=goal.target if arguments.target is None else arguments.target,
        mode=goal.mode if arguments.mode is None else arguments.mode,
        allocation=goal.allocation if arguments.allocation is None else arguments.allocation,
        limits=limits,
        uniform=goal.uniform or arguments.uniform,
    )
    for metric, asked in task.budgets_of(request).items():
        limit = task.budgets[metric].limit
        if asked.limit > limit:
            raise TargetError(
                f"Target {arguments.target!r} allows {asked.limit:,} {asked.unit}, above the session's budget of {limit:,}. "
                "Request at most that budget."
            )
    return request


def _tightened(kind: str, goal: Mapping[str, Bound], asked: Mapping[str, Bound]) -> dict[str, Bound]:
    """Both sets of bounds; the session's own stay as they are."""
    both = [pattern for pattern in asked if pattern in goal and goal[pattern] != asked[pattern]]
    if both:
        raise InputError(f"The session sets the {kind} of {listed((repr(name[:80]) for name in both), 5)}; it cannot be changed.")
    return {**goal, **asked}
