"""Meet a budget of time: measure the plan's network in turns with the unpruned one, and correct the limit of its predicted time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from proxyprune.errors import TargetError
from proxyprune.measuring.time_corrections import Trial, best_of, corrected, is_precise
from proxyprune.measuring.timed_run import TimedTurns
from proxyprune.planning.budget import check_target
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planned_time import MeasuredTime
from proxyprune.planning.request import PlanRequest
from proxyprune.result import PruneResult

Enough = Callable[[TimedTurns], bool]
"""Returns True if these turns suffice to judge by."""


def prune_to_time(
    request: PlanRequest,
    prune: Callable[[PlanRequest], PruneResult],
    measure: Callable[[PruneResult, Enough], TimedTurns],
    *,
    accept_missed: bool = False,
) -> PruneResult:
    """Prune until the measured time is within the target, with at most three corrections.

    Args:
        request: What is asked of the plan, with a target of time among its targets.
        prune: Makes and verifies the network of a request.
        measure: Times a result's network in turns with the unpruned one; its second argument says when there were enough turns.
        accept_missed: Return the fastest network that was found with a note, instead of an error, if none meets the target.

    Returns:
        Of the networks that meet the target the slowest, with both times in its plan and report.

    Raises:
        TargetError: If no network met the target and that was not accepted, or no plan reaches it by prediction.
    """
    attempts = _Attempts(request, prune, measure)
    trials = corrected(attempts.attempt)
    chosen = best_of(trials)
    measured = attempts.measured(trials, chosen)
    if not measured.met and not accept_missed:
        raise TargetError(
            f"Target {request.targets['time']!r} of time is not met: {measured.sentence}, and the target was "
            f"{trials[chosen].target:.1%}, after {len(trials) - 1} corrections. Choose a higher target, loosen the limits, or pass "
            "accept_missed_time=True (--accept-missed-time) to use this network."
        )
    return _recorded(request, attempts.results[chosen], measured)


def measured_as_planned(request: PlanRequest, result: PruneResult, measure: Callable[[PruneResult, Enough], TimedTurns]) -> PruneResult:
    """Return a result with its measured time, and with a note if that misses the target; nothing is planned again.

    Args:
        request: What was asked for, with a target of time among its targets.
        result: The network, whose plan has a predicted time.
        measure: As for `prune_to_time`.
    """
    attempts = _Attempts(request, lambda asked: result, measure)
    trials = [trial for trial in (attempts.attempt(None),) if trial is not None]
    return _recorded(request, result, attempts.measured(trials, 0))


class _Attempts:
    """The results and measurements of a request, one for each trial."""

    def __init__(
        self, request: PlanRequest, prune: Callable[[PlanRequest], PruneResult], measure: Callable[[PruneResult, Enough], TimedTurns]
    ) -> None:
        self._request = request
        self._prune = prune
        self._measure = measure
        self._turns: list[TimedTurns] = []
        self.results: list[PruneResult] = []

    def attempt(self, limit: int | None) -> Trial | None:
        """Plan and measure within a limit of predicted nanoseconds; None if it is out of reach. A plan is measured once."""
        asked = self._request if limit is None else self._within(limit)
        if asked is None:
            return None
        try:
            result = self._prune(asked)
        except TargetError:
            if not self.results:
                raise
            return None  # the corrected limit is out of reach; the trials so far decide
        known = (turns for other, turns in zip(self.results, self._turns, strict=True) if other.plan.same_network(result.plan))
        turns = next(known, None) or self._measure(result, lambda found: is_precise(found.interval, self._target(found)))
        self.results.append(result)
        self._turns.append(turns)
        planned = result.plan.time
        assert planned is not None
        allowed = planned.nanoseconds if planned.target_nanoseconds is None else planned.target_nanoseconds
        return Trial(allowed, planned.nanoseconds, turns.ratio.middle, self._target(turns))

    def _within(self, limit: int) -> PlanRequest | None:
        """Return the request with this limit of predicted time, below that of the unpruned network; None if it was tried."""
        plans = [result.plan.time for result in self.results]
        assert plans[0] is not None
        nanoseconds = min(max(1, limit), plans[0].base_nanoseconds - 1)
        if any(plan is not None and plan.target_nanoseconds == nanoseconds for plan in plans):
            return None
        return self._request.within_time(nanoseconds)

    def _target(self, turns: TimedTurns) -> float:
        """Return the target as a share of the unpruned network's time; a duration as a share of what was measured beside it."""
        value = check_target(self._request.targets["time"], "time")
        return float(value) if value < 1 else float(value) / (1e9 * turns.before.middle)

    def measured(self, trials: Sequence[Trial], chosen: int) -> MeasuredTime:
        """Return the measurement of a trial, with what was predicted and measured at first."""
        first = self.results[0].plan.time
        assert first is not None
        return replace(
            measured_time(self._turns[chosen]),
            target_ratio=trials[chosen].target,
            met=trials[chosen].met,
            corrections=chosen,
            first_predicted=first.ratio,
            first_measured=trials[0].measured,
        )


def measured_time(turns: TimedTurns) -> MeasuredTime:
    """Return a measurement in turns as a plan and a report hold it."""
    before, after, ratio = ((part.low, part.middle, part.high) for part in (turns.before, turns.after, turns.ratio))
    return MeasuredTime(before, after, ratio, interval=turns.interval, turns=turns.turns, settings=turns.timing.to_dict())


def _recorded(request: PlanRequest, result: PruneResult, measured: MeasuredTime) -> PruneResult:
    assert measured.target_ratio is not None
    assert result.plan.time is not None
    targets = request.targets
    notes: tuple[str, ...] = ()
    if not measured.met:
        notes = (
            f"The target of time was missed, and this was accepted: {measured.sentence}, and the target was {measured.target_ratio:.1%}.",
        )
    plan: PrunePlan = replace(
        result.plan,
        target=next(iter(targets.values())) if len(targets) == 1 else targets,
        time=replace(result.plan.time, measured=measured),
        notes=(*result.plan.notes, *notes),
    )
    report = replace(result.report, notes=(*result.report.notes, *notes), time=measured, seconds=(measured.before[1], measured.after[1]))
    return replace(result, plan=plan, report=report)
