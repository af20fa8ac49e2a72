"""From a ranking and a budget to a plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from proxyprune.errors import InputError, TargetError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.acceptance import check_costed, check_reliable
from proxyprune.planning.budget import METRICS, Budget, Target, parse_budget, share_hint
from proxyprune.planning.built_plan import without_coincidence
from proxyprune.planning.coarse_steps import smallest_step, wider_units
from proxyprune.planning.constraints import (
    BELOW_DEFAULT_FLOOR,
    DEFAULT_FLOOR,
    UNROUNDED,
    resolve,
)
from proxyprune.planning.counted_layers import counted_layers
from proxyprune.planning.depth import drop_nested, share_of_blocks, solve_depth
from proxyprune.planning.importance import check_scores, comparable_channels, importance_by_group, kept_atoms, lost_importance
from proxyprune.planning.limits import AUTO
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planned_time import PlannedTime
from proxyprune.planning.price import JointCost, PlanCost, bases_of, time_of
from proxyprune.planning.problem import Choice, Problem, full_width
from proxyprune.planning.request import PlanKeywords, PlanRequest
from proxyprune.planning.shared_widths import SharedWidths, Ties, decided, ties_of
from proxyprune.planning.widths import TOLERANCE, order_by_loss, order_steps, savings_per_atom, solve_widths
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.keywords import check_keywords

if TYPE_CHECKING:
    from torch import nn

IndexArray = NDArray[np.int64]

_WEIGHINGS = 3
"""Number of times that channels are weighed: what one saves is looked at again in the plan that the last weighing gave."""

_COINCIDENCES = 64
"""The most plans of a uniform request that are left out because the class builds another network from their config."""


def make_plan(
    graph: ModelGraph,
    ranking: Ranking,
    target: Target = 0.6,
    *,
    model: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
    **keywords: Unpack[PlanKeywords],
) -> PrunePlan:
    """Decide what to cut so that the network fits a budget.

    The plan never exceeds the budget, and misses it by less than 1 % of the base wherever the steps allow; otherwise a note says by how
    much.

    Args:
        graph: The traced model.
        ranking: Block importances, for exactly the blocks of the graph.
        target: Fraction of the base (0 < t < 1), an absolute number ("3.4G"), or several by metric ({"macs": 0.7, "params": 0.8}), all of
            which the plan meets. A target of time is one for the predicted time; the graph comes from `with_times`.
        model: Where the ranking has no channel scores, atoms are ordered by the magnitude of this model's weights; without a model, the
            first ones stay.
        options: Further settings to record in the plan (plain JSON values).
        keywords: `PlanKeywords`: mode, metric, round_to, keep, floors, ceilings, remove, allocation, uniform,
            accept_uncosted, accept_unreliable.

    Returns:
        The plan.

    Raises:
        TargetError: If the target is out of range or no plan reaches it; the message says what the best plan reaches and what limits it.
            Also if the MACs of some ops are unknown and that was not accepted.
        KeepPatternError: If a pattern matches nothing.
        InvalidScoreError: If the ranking does not fit the graph.
        UnreliableRankingError: If the ranking is marked unreliable and that was not accepted.
        InputError: If another argument makes no sense.
        TypeError: If a keyword is unknown.
    """
    check_keywords(make_plan, keywords, PlanKeywords)
    return plan_for(graph, ranking, PlanRequest.of(target, **keywords), model=model, options=options)


def plan_for(
    graph: ModelGraph,
    ranking: Ranking,
    request: PlanRequest,
    *,
    model: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> PrunePlan:
    """Make the plan of a request; arguments and errors as for `make_plan`."""
    targets = request.targets
    bases = bases_of(graph, tuple(targets))
    budgets = tuple(parse_budget(target, base=bases[metric], metric=metric) for metric, target in targets.items())
    check_scores(graph, ranking)
    check_reliable(ranking, accepted=request.accept_unreliable)
    for metric in targets:
        check_costed(graph, metric, accepted=request.accept_uncosted)
    resolved, allocation = resolve(graph, request.limits), chosen_allocation(graph, ranking, request.allocation)
    ties = ties_of(graph, request.uniform)
    ties.check_removed(graph, resolved.removed_blocks)
    undecided, problem, choice = _choose(Problem(graph, ranking, request, budgets, resolved, allocation, ties))
    if choice is None:
        raise _unreachable(problem)
    counts = {g.id: int(n) for g, n in zip(graph.prunable, choice.atoms.tolist(), strict=True) if n < g.atoms}
    macs, params = (PlanCost(graph, each, choice.removed).one(choice.atoms) for each in METRICS)
    limits = {budget.metric: budget.limit for budget in budgets}
    return PrunePlan(
        fingerprint=graph.fingerprint,
        mode=request.mode,
        metric=",".join(targets),
        target=budgets[0].asked if len(budgets) == 1 else {budget.metric: budget.asked for budget in budgets},
        base_macs=graph.macs,
        target_macs=limits.get("macs", graph.macs),
        macs=macs,
        base_params=graph.params,
        target_params=limits.get("params", graph.params),
        params=params,
        kept=kept_atoms(graph, ranking, counts, model),
        widths={group: (graph.by_id[group].width, count * graph.by_id[group].atom_channels) for group, count in counts.items()},
        removed_blocks=tuple(block.id for block in graph.blocks if block.id in choice.removed),
        scorer=ranking.scorer,
        seed=ranking.seed,
        options=_options(problem, options),
        notes=_notes(problem, choice, undecided.ties),
        time=None if graph.cost.time is None else _planned_time(problem, choice),
    )


def _planned_time(problem: Problem, choice: Choice) -> PlannedTime:
    """Return the predicted time of a choice, beside its budget if there is one."""
    time, limits = time_of(problem.graph), {budget.metric: budget.limit for budget in problem.budgets}
    base = time.total(full_width(problem.graph))
    return PlannedTime(base, limits.get("time"), time.total(choice.atoms, choice.removed), dict(time.settings))


def chosen_allocation(graph: ModelGraph, ranking: Ranking, asked: str) -> str:
    """Return where widths come from: "blocks" or "channels".

    Raises:
        InputError: If channels were asked for and cannot be compared.
    """
    comparable = comparable_channels(graph, ranking)
    if asked == "channels" and not comparable:
        missing = sum(group.id not in ranking.channel_scores for group in graph.prunable)
        found = f"{missing} of {len(graph.prunable)} groups without scores" if missing else "scores that it does not call comparable"
        raise InputError(
            f"allocation='channels' needs channel scores in one unit for the whole network; the ranking by '{ranking.scorer}' has {found}. "
            "Use a scorer that estimates the loss, such as 'taylor', or allocation='blocks'."
        )
    return asked if asked != "auto" else "channels" if comparable else "blocks"


def _choose(problem: Problem) -> tuple[Problem, Problem, Choice | None]:
    """Choose widths and blocks; of a uniform plan only such that the class builds the network from its config.

    Returns:
        The problem without the plans that no config gives, the same with the numbers decided that divide others, and the choice.

    Raises:
        InputError: If the class cannot do without the blocks that the request removes.
        TargetError: If no plan that was tried can be built from a config.
    """
    for _ in range(_COINCIDENCES + 1):
        decided_problem, choice = _choose_once(problem)
        forced = problem.resolved.removed_blocks
        ties = None if choice is None else without_coincidence(problem.ties, problem.graph, choice.atoms, choice.removed, forced)
        if ties is None:
            return problem, decided_problem, choice
        problem = replace(problem, ties=ties)
    raise TargetError(
        f"The config cannot express a plan for this target: the class builds other networks from the configs of the {_COINCIDENCES + 1} "
        "plans that were tried. Choose another target or mode, or use uniform='layers' and save with proxyprune.save."
    )


def _choose_once(problem: Problem) -> tuple[Problem, Choice | None]:
    """Choose widths and blocks; numbers of a config that have to divide others are decided first, and the problem is that of the rest."""
    choice = _CHOOSE[problem.request.mode](problem)
    if choice is None or not problem.ties.divisors or problem.request.mode == "depth":
        return problem, choice
    rest = replace(problem, ties=decided(problem.ties, choice.atoms))
    return rest, _CHOOSE[problem.request.mode](rest)


def _choose_widths(problem: Problem, removed: frozenset[str] = frozenset()) -> Choice | None:
    removed = problem.gone(removed)
    price, allowed = problem.price(removed), problem.allowed(removed)
    if problem.allocation == "blocks":
        steps = order_steps(allowed, importance_by_group(problem.graph, problem.ranking))
        atoms = solve_widths(steps, price, problem.limit, problem.base)
    else:
        atoms = _weigh_channels(problem, price, allowed)
    return None if atoms is None else Choice(atoms, removed)


def _savings(price: PlanCost | JointCost, allowed: tuple[SharedWidths, ...], atoms: IndexArray) -> NDArray[np.float64]:
    """Cost that leaves with one atom of each group; of several budgets the sum of shares over those that hold the plan back."""
    if isinstance(price, PlanCost):
        return savings_per_atom(price, allowed, atoms)
    parts = [savings_per_atom(one, allowed, atoms) / limit for one, limit in price.deciding(atoms)]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def _weigh_channels(problem: Problem, price: PlanCost | JointCost, allowed: tuple[SharedWidths, ...]) -> IndexArray | None:
    """Least lost for what is saved; what an atom saves depends on all other widths, so it is looked at again in the plan found."""
    scores = [np.asarray(problem.ranking.channel_scores[group.id], np.float64) for group in problem.graph.prunable]
    lost = [
        np.sum(
            [
                lost_importance(problem.graph.prunable[group], scores[group], entry.counts[:, place])
                for place, group in enumerate(entry.groups)
            ],
            axis=0,
        )
        for entry in allowed
    ]
    atoms = full_width(problem.graph)
    for _ in range(_WEIGHINGS):
        steps = order_by_loss(allowed, lost, _savings(price, allowed, atoms))
        found = solve_widths(steps, price, problem.limit, problem.base)
        if found is None:
            return None
        atoms = found
    return atoms


def _choose_blocks(problem: Problem) -> Choice | None:
    removed = solve_depth(problem.leaving, problem.price_blocks, problem.limit)
    return None if removed is None else Choice(full_width(problem.graph), problem.gone(removed))


def _choose_both(problem: Problem) -> Choice | None:
    leaving = problem.leaving
    start = share_of_blocks(leaving, problem.price_blocks, base=problem.base, limit=problem.limit)
    for count in range(start, len(leaving) + 1):
        removed = problem.gone(drop_nested(leaving[:count]))
        # The narrowest network shows whether solving the widths can succeed.
        if problem.price(removed).one(_narrowest(problem, removed)) <= problem.limit:
            return _choose_widths(problem, removed)
    return None


_CHOOSE = {"width": _choose_widths, "depth": _choose_blocks, "both": _choose_both}


def _narrowest(problem: Problem, removed: Collection[str] = ()) -> IndexArray:
    atoms = full_width(problem.graph)
    for entry in problem.allowed(removed):
        atoms[list(entry.groups)] = entry.counts[-1]
    return atoms


def _options(problem: Problem, further: Mapping[str, Any] | None) -> dict[str, Any]:
    graph, limits = problem.graph, problem.request.limits
    asked: dict[str, Any] = {
        "allocation": problem.allocation,
        "norm_groups": graph.options.norm_groups,
        "conv_groups": graph.options.conv_groups,
        **({"adapter_ranks": graph.options.adapter_ranks} if graph.options.adapter_ranks != "keep" else {}),
        "round_to": limits.round_to,
        "keep": list(limits.keep),
        "floors": dict(limits.floors),
        "ceilings": dict(limits.ceilings),
    }
    if limits.remove:
        asked["remove"] = list(limits.remove)
    if problem.request.uniform:
        asked["uniform"] = problem.request.cut_keywords()["uniform"]
    if graph.amendments:
        asked["amendments"] = graph.amendments.to_dict()
    if graph.registered_ops:
        asked["registered_rules"] = list(graph.registered_ops)
    return asked | dict(further or {})


def _least(problem: Problem) -> int:
    """Cost of the cheapest network that the mode and the limits allow."""
    leaving = problem.leaving if problem.request.mode != "width" else []
    removed = problem.gone(drop_nested(leaving))
    return problem.price(removed).one(full_width(problem.graph) if problem.request.mode == "depth" else _narrowest(problem, removed))


def _unreachable(problem: Problem) -> TargetError:
    """Return the error for a budget that no plan meets; of several the first that is out of reach alone.

    The cheapest network is the cheapest in every metric, so where several are out of reach together, one is alone.
    """
    if len(problem.budgets) > 1:
        alone = [replace(problem, budgets=(budget,)) for budget in problem.budgets]
        problem = next((one for one in alone if _least(one) > one.limit), alone[0])
    budget, mode = problem.budgets[0], problem.request.mode
    best = _least(problem)

    def without(**changes: Any) -> int:
        return _least(replace(problem, resolved=resolve(problem.graph, replace(problem.request.limits, **changes))))

    reasons = []
    for name, changes in (("the keep patterns hold", {"keep": ()}), ("the floors hold", {"floors": {}})):
        held = best - without(**changes)
        if held > 0:
            reasons.append(f"{name} {held:,} ({budget.share(held):.1%} of the base)")
    rest = without(keep=(), floors={})
    why = {"width": "pinned axes and the last step of each group", "depth": "what is outside the removable blocks"}
    reasons.append(f"{rest:,} ({budget.share(rest):.1%}) cannot go in mode '{mode}': {why.get(mode, ' and '.join(why.values()))}")
    pinned = [group for group in problem.graph.groups if group.pinned is not None]
    if pinned and mode != "depth":
        reasons.append(f"{len(pinned)} channel groups are pinned, such as '{pinned[0].id}' ({pinned[0].pinned})")
    if any(group.pinned_by_computed_weight for group in pinned):
        reasons.append("layers compute their weight from all their inputs; pp.plain_weights(model) replaces them by plain ones")
    if problem.ties.family is not None and mode != "width":
        stuck = [layer.obstacle for layer in counted_layers(problem.graph, problem.ties.family) if layer.obstacle]
        reasons += [f"{len(stuck)} layer{'s' if len(stuck) > 1 else ''} stay{'' if len(stuck) > 1 else 's'}: {stuck[0]}"] if stuck else []
    if problem.ties.fixed and mode != "depth":
        first, cause = next(iter(problem.ties.fixed.items()))
        held = len(problem.ties.fixed)
        reasons.append(f"uniform keeps {held} channel groups whole, such as '{problem.graph.prunable[first].id}' ({cause})")
    if best >= budget.base:
        return TargetError(
            f"Target {budget.asked!r} cannot be reached. The best reachable is {budget.base:,} {budget.unit}, 1.0000 of the base: "
            f"nothing can be cut in mode '{mode}'. What limits it: {'; '.join(reasons)}. "
            "Try another mode; `graph.groups` has the reasons, in the terminal `proxyprune describe`."
        )
    # Rounded up, so that the figure works as a target.
    fraction = min(1.0, math.ceil(budget.share(best) * 10_000 + 1e-6) / 10_000)
    return TargetError(
        f"Target {budget.asked!r} ({budget.limit:,} {budget.unit}) cannot be reached. The best reachable is {best:,} {budget.unit}, "
        f"{fraction:.4f} of the base of {budget.base:,}. What limits it: {'; '.join(reasons)}. "
        f"Choose a higher target, or loosen the limits.{share_hint(budget)}"
    )


def _notes(problem: Problem, choice: Choice, undecided: Ties) -> tuple[str, ...]:
    mode = problem.request.mode
    notes = list(problem.graph.notes)
    if problem.ranking.unreliable is not None:
        notes.append(f"The ranking is unreliable, and was accepted by request: {problem.ranking.unreliable}")
    if problem.graph.uncosted_ops:
        notes.append(f"No figure counts the MACs of {', '.join(problem.graph.uncosted_ops)}, for which there is no cost rule.")
    if mode != "depth" and problem.ranking.comparable_channels and not comparable_channels(problem.graph, problem.ranking):
        unscored = [group.id for group in problem.graph.prunable if group.id not in problem.ranking.channel_scores]
        notes.append(f"Widths follow blocks, and channels are not weighed across groups: {_some(unscored)} without channel scores.")
    notes += _gap_notes(problem, choice, undecided)
    if mode == "both" and not choice.removed:
        notes.append(f"Mode 'both' removed no block, so this plan narrows widths only: {_why_no_block(problem)}.")
    if mode == "depth":
        if problem.request.limits.ceilings:
            notes.append("Ceilings limit widths; mode 'depth' does not use them.")
        return tuple(notes)
    relaxed = _cut_in_phase(problem, choice, BELOW_DEFAULT_FLOOR)
    if relaxed:
        notes.append(f"To reach the target, {_some(relaxed)} went below the default floor of {DEFAULT_FLOOR:.0%} of their atoms.")
    unrounded = _cut_in_phase(problem, choice, UNROUNDED)
    if unrounded:
        round_to = problem.request.limits.round_to
        multiple = "No multiple that pays" if round_to == AUTO else f"No multiple of {round_to} channels"
        notes.append(f"{multiple} was possible for {_some(unrounded)}.")
    return tuple(notes)


def _gap_notes(problem: Problem, choice: Choice, undecided: Ties) -> list[str]:
    """Return how far the plan stays below its target; of several budgets below the tightest."""
    gaps = [(budget.limit - PlanCost(problem.graph, budget.metric, choice.removed).one(choice.atoms), budget) for budget in problem.budgets]
    gap, budget = min(gaps, key=lambda pair: pair[0] / pair[1].base)
    if gap <= TOLERANCE * budget.base:
        return []
    coarse = {"width": "the channel steps", "depth": "whole blocks"}.get(problem.request.mode, "blocks and channel steps")
    return [
        f"The plan stays {gap:,} {budget.unit} ({budget.share(gap):.2%} of the base) below the target: "
        f"{coarse} and the limits gave nothing closer.{_smallest_step(problem, choice, undecided, budget)}"
    ]


def _smallest_step(problem: Problem, choice: Choice, undecided: Ties, budget: Budget) -> str:
    """Return how much of a budget the smallest step of a uniform plan takes; an empty string for other plans."""

    def cost(atoms: IndexArray, removed: Collection[str]) -> int:
        return PlanCost(problem.graph, budget.metric, frozenset(removed)).one(atoms)

    if not problem.request.uniform:
        return ""
    wider = list(wider_units(problem, choice, undecided)) if problem.request.mode != "depth" else []
    leaving = problem.leaving if problem.request.mode != "width" else []
    step = smallest_step(problem.graph, undecided, wider, leaving, cost, choice)
    return "" if step is None else f" The smallest step back takes {budget.share(step[0]):.2%} of the base: {step[1]}."


def _why_no_block(problem: Problem) -> str:
    removable = [block.id for block in problem.graph.blocks if block.removable]
    if not removable:
        return "the network has no block that can be removed"
    leaving = problem.leaving
    if not leaving:
        return f"keep patterns or floors hold all {len(removable)} removable blocks"
    first = sorted(leaving[0])
    share = 1.0 - problem.price_blocks(first) / problem.base
    named = f"'{' with '.join(first)}'"
    return f"the least important removable block, {named}, saves {share:.1%} of the base, too much for the cut asked for"


def _cut_in_phase(problem: Problem, choice: Choice, phase: int) -> list[str]:
    """Return the groups whose count is allowed only as a last resort of this kind."""
    found: list[int] = []
    for entry in problem.allowed(choice.removed):
        if entry.phases[entry.level(choice.atoms)] & phase:
            found += entry.groups
    return [problem.graph.prunable[group].id for group in sorted(found)]


def _some(groups: list[str]) -> str:
    shown = ", ".join(f"'{group}'" for group in groups[:5])
    return f"{len(groups)} group{'s' if len(groups) > 1 else ''} ({shown}{', …' if len(groups) > 5 else ''})"
