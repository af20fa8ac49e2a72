"""Meet a budget of time: measure the plan's network in turns with the unpruned one, and correct the budget by the ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from proxyprune.errors import TargetError
from proxyprune.measuring.timed_run import TimedTurns
from proxyprune.planning.budget import check_target
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planned_time import MeasuredTime
from proxyprune.planning.request import PlanRequest
from proxyprune.result import PruneResult

CORRECTIONS = 3
"""Most corrections of a budget."""

TOLERANCE = 0.01
"""Share of the unpruned network's time by which a median may lie above the target: what such measurements vary by."""

UNUSED = 0.04
"""Share of the unpruned network's time that a plan may leave unused before the budget is corrected upwards."""


@dataclass(frozen=True)
class _Attempt:
    result: PruneResult
    turns: TimedTurns
    target: float

    @property
    def ratio(self) -> float:
        return self.turns.ratio.middle

    @property
    def met(self) -> bool:
        return self.ratio <= self.target + TOLERANCE

    @property
    def near(self) -> bool:
        return self.met and self.ratio >= self.target - UNUSED


def prune_to_time(
    request: PlanRequest,
    prune: Callable[[PlanRequest], PruneResult],
    measure: Callable[[PruneResult], TimedTurns],
    *,
    accept_missed: bool = False,
) -> PruneResult:
    """Prune until the measured time is within the target.

    Args:
        request: What is asked of the plan, with a target of time among its targets.
        prune: Makes and verifies the network of a request.
        measure: Times a result's network in turns with the unpruned one.
        accept_missed: Return the fastest network that was found with a note, instead of an error, if none meets the target.

    Returns:
        Of the networks that meet the target the slowest, with both times in its plan and report.

    Raises:
        TargetError: If no network met the target and that was not accepted, or no plan reaches it by prediction.
    """
    attempts: list[_Attempt] = []
    asked = request
    for _ in range(CORRECTIONS + 1):
        try:
            result = prune(asked)
        except TargetError:
            if not attempts:
                raise
            break  # the corrected budget is out of reach; the attempts so far decide
        turns = measure(result)
        attempts.append(_Attempt(result, turns, _target_ratio(request, turns)))
        if attempts[-1].near:
            break
        asked = _corrected(request, attempts[-1])
    met = [attempt for attempt in attempts if attempt.met]
    chosen = max(met, key=lambda attempt: attempt.ratio) if met else min(attempts, key=lambda attempt: attempt.ratio)
    if not met and not accept_missed:
        raise TargetError(
            f"Target {request.targets['time']!r} of time is not met: {_measured(chosen, attempts).sentence}, and {chosen.target:.1%} was "
            f"asked for, after {len(attempts) - 1} corrections. Ask for a lower target, loosen the limits, or pass "
            "accept_missed_time=True (--accept-missed-time) to take this network."
        )
    return _recorded(request, chosen, attempts)


def _target_ratio(request: PlanRequest, turns: TimedTurns) -> float:
    """Return the target as a share of the unpruned network's time; a duration as a share of what was measured beside it."""
    value = check_target(request.targets["time"], "time")
    return float(value) if value < 1 else float(value) / (1e9 * turns.before.middle)


def _corrected(request: PlanRequest, attempt: _Attempt) -> PlanRequest:
    """Return the request with the predicted time that would be on the target if predictions are off by this attempt's factor."""
    planned = attempt.result.plan.time
    assert planned is not None
    wanted = round(planned.nanoseconds * attempt.target / attempt.ratio)
    limit = min(max(1, wanted), planned.base_nanoseconds - 1)
    return replace(request, target={**request.targets, "time": f"{limit}ns"})


def _measured(attempt: _Attempt, attempts: list[_Attempt]) -> MeasuredTime:
    first = attempts[0]
    assert first.result.plan.time is not None
    return replace(
        measured_time(attempt.turns),
        target_ratio=attempt.target,
        met=attempt.met,
        corrections=attempts.index(attempt),
        first_predicted=first.result.plan.time.ratio,
        first_measured=first.ratio,
    )


def measured_time(turns: TimedTurns) -> MeasuredTime:
    """Return a measurement in turns as a plan and a report hold it."""
    before, after, ratio = ((part.low, part.middle, part.high) for part in (turns.before, turns.after, turns.ratio))
    return MeasuredTime(before, after, ratio, settings=turns.timing.to_dict())


def _recorded(request: PlanRequest, chosen: _Attempt, attempts: list[_Attempt]) -> PruneResult:
    result, measured = chosen.result, _measured(chosen, attempts)
    assert result.plan.time is not None
    targets = request.targets
    notes: tuple[str, ...] = ()
    if not measured.met:
        notes = (f"The target of time was missed, and that was accepted: {measured.sentence}, and {chosen.target:.1%} was asked for.",)
    plan: PrunePlan = replace(
        result.plan,
        target=next(iter(targets.values())) if len(targets) == 1 else targets,
        time=replace(result.plan.time, measured=measured),
        notes=(*result.plan.notes, *notes),
    )
    report = replace(result.report, notes=(*result.report.notes, *notes), time=measured, seconds=(measured.before[1], measured.after[1]))
    return replace(result, plan=plan, report=report)
