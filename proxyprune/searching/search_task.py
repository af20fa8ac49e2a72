"""The work of a search: proposals become plans, and plans become measured rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from proxyprune.api import prune_ranked
from proxyprune.applying.apply import apply
from proxyprune.errors import (
    LLMInvalidAnswerError,
    LLMRefusalError,
    LLMTruncatedError,
    ScoringError,
    VerificationError,
)
from proxyprune.graph.build import trace_like
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, Recovery, recovered
from proxyprune.measuring.time_budget import Enough, prune_to_time
from proxyprune.measuring.timed_run import TimedTurns, timed_in_turns
from proxyprune.measuring.timing import Timing
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.pruning.advice import Advice
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring import ScoringContext
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.exact_widths import NO_PLAN, planned_widths, possible_widths
from proxyprune.searching.measurement import Measured, Measurement, measured_in_processes
from proxyprune.searching.proposer import History, Proposal, Proposer
from proxyprune.searching.round import BETTER, DUPLICATE, FAILED, START, WORSE, Round, kept_shares, key_of
from proxyprune.tracing.capture import ExampleInputs


@dataclass(frozen=True)
class Draft:
    """A proposal that is planned and not measured.

    Attributes:
        index: Place of its round.
        known: Number of rounds that it followed from.
        ranking: What was proposed.
        request: What is asked of its plan: that of the search, with the advice that can be followed.
        advice: That advice.
        plan: The plan, or None if there is none.
        key: Identifies the plan.
        duplicate_of: The earlier round with the same plan, or None.
        seconds: Spent on proposing and planning.
        error: Why there is no plan, or None.
        formula: The formula that the ranking comes from, or None.
        widths: Proposed widths that the plan has.
    """

    index: int
    known: int
    ranking: Ranking
    request: PlanRequest
    advice: tuple[Advice, ...]
    plan: PrunePlan | None
    key: str
    duplicate_of: int | None
    seconds: float
    error: str | None = None
    formula: str | None = None
    widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def to_measure(self) -> bool:
        """True if the network has to be made and measured."""
        return self.error is None and self.duplicate_of is None


@dataclass(frozen=True)
class SearchTask:
    """Network, data and request of a search: the same for all rounds."""

    model: nn.Module
    inputs: ExampleInputs
    graph: ModelGraph
    data: Data
    recovery: Recovery
    request: PlanRequest
    context: ScoringContext
    timing: Timing | None = None

    def time_limit(self, start: Ranking) -> int | None:
        """Return the limit of predicted time with which the start's network meets the target of time by measurement.

        None if the network cannot be cut; the limit is then the target itself.
        """
        ranking = replace(start, unreliable=None)
        try:
            result = prune_to_time(
                self.request,
                lambda asked: prune_ranked(self.model, self.inputs, self.graph, ranking, asked),
                self.time_of,
                accept_missed=True,
            )
        except (VerificationError, ScoringError):
            return None
        return None if result.plan.time is None else result.plan.time.target_nanoseconds

    def time_of(self, result: PruneResult, enough: Enough) -> TimedTurns:
        """Time a network in turns with the unpruned one."""
        return timed_in_turns(self.model, result.model, self.inputs, self.timing, enough=enough)

    def history(self, start: Ranking, rounds: Sequence[Round]) -> History:
        """Return what a proposer sees."""
        return History(self.graph, self.context, self.request.mode, start, tuple(rounds), self._possible_widths)

    @cached_property
    def _possible_widths(self) -> Mapping[str, tuple[int, ...]]:
        return possible_widths(self.graph, self.request.limits)

    def drafts(self, proposer: Proposer, start: Ranking, before: Sequence[Round], size: int) -> list[Draft]:
        """Return the next proposals, all of which follow from the rounds before them."""
        found: list[Draft] = []
        for _ in range(size):
            started = time.perf_counter()
            pending = [self._pending(draft) for draft in found]
            found.append(self._draft(proposer, self.history(start, [*before, *pending]), len(before), found, started))
        return found

    def _draft(self, proposer: Proposer, history: History, known: int, batch: Sequence[Draft], started: float) -> Draft:
        empty = Draft(len(history.rounds), known, history.start, self.request, (), None, "", None, 0.0)

        def draft(**found: Any) -> Draft:
            return replace(empty, seconds=time.perf_counter() - started, **found)

        try:
            proposed = proposer.propose(history) if history.rounds else history.start
        except (LLMInvalidAnswerError, LLMRefusalError, LLMTruncatedError) as error:
            return draft(ranking=history.best.ranking, error=f"No proposal: {error}")
        given = proposed if isinstance(proposed, Proposal) else Proposal(proposed)
        empty = replace(empty, formula=given.formula)
        ranking = replace(given.ranking, unreliable=None)  # measuring shows whether a ranking can be relied on
        try:
            plan = plan_for(self.graph, ranking, self.request, model=self.model)
        except (VerificationError, ScoringError) as error:
            return draft(ranking=ranking, error=str(error))
        ranking, request, followed, plan = self._followed(ranking, given.advice, plan)
        pinned = planned_widths(
            request, plan, given.widths, self._possible_widths, lambda asked: plan_for(self.graph, ranking, asked, model=self.model)
        )
        request, plan, ranking = pinned.request, pinned.plan, replace(ranking, notes=(*ranking.notes, *pinned.notes))
        key = key_of(plan)
        earlier = [(entry.key, entry.index) for entry in history.rounds[:known] if entry.measured]
        earlier += [(one.key, one.index) for one in batch if one.to_measure]
        same = next((place for found, place in earlier if found == key), None)
        return draft(ranking=ranking, request=request, advice=followed, widths=pinned.widths, plan=plan, key=key, duplicate_of=same)

    def _followed(
        self, ranking: Ranking, advice: Sequence[Advice], plan: PrunePlan
    ) -> tuple[Ranking, PlanRequest, tuple[Advice, ...], PrunePlan]:
        """Return the plan with all advice that a plan can follow, one after the other; notes of the ranking name the rest."""
        request, followed, notes = self.request, [], []
        for entry in advice:
            try:
                tried = entry.followed(request)
                plan = plan_for(self.graph, ranking, tried, model=self.model)
            except NO_PLAN as error:
                notes.append(f"Advice to {entry} was left out: {error}")
                continue
            request = tried
            followed.append(entry)
        return replace(ranking, notes=(*ranking.notes, *notes)), request, tuple(followed), plan

    def measured(self, drafts: Sequence[Draft], done: Sequence[Round], jobs: int) -> Iterator[Round]:
        """Yield the rounds of drafts that are not done, in order, as their measurements end."""
        left = [draft for draft in drafts if draft.index >= len(done)]
        waiting = [draft for draft in left if draft.to_measure]
        results = self._results(waiting, jobs)
        rounds = list(done)
        for draft in left:
            entry = self._round(draft, next(results) if draft.to_measure else None, rounds)
            rounds.append(entry)
            yield entry

    def _results(self, drafts: Sequence[Draft], jobs: int) -> Iterator[Measured]:
        measurement = Measurement(self.model, self.inputs, self.graph, self.data, self.recovery, self.context.seed)
        if jobs > 1 and len(drafts) > 1:
            wanted = {f"round {draft.index}": (draft.ranking, draft.request) for draft in drafts}
            yield from measured_in_processes(measurement, wanted, jobs)
            return
        for draft in drafts:
            yield measurement.of(draft.ranking, draft.request)

    def _pending(self, draft: Draft) -> Round:
        """Return the round of a draft that waits for its measurement, as later proposals of its batch see it: no loss, and no key."""
        entry = self._unmeasured(draft)
        return replace(entry, key="", error=entry.error or "It waits for its measurement.")

    def _unmeasured(self, draft: Draft) -> Round:
        ranking, kept = replace(draft.ranking, channel_scores={}), {} if draft.plan is None else kept_shares(self.graph, draft.plan)
        return Round(
            index=draft.index,
            ranking=ranking,
            plan=draft.plan,
            key=draft.key,
            kept=kept,
            loss=None,
            verdict=FAILED,
            seconds=draft.seconds,
            error=draft.error,
            known=draft.known,
            advice=draft.advice,
            formula=draft.formula,
            exact_widths=draft.widths,
        )

    def _round(self, draft: Draft, found: Measured | None, rounds: Sequence[Round]) -> Round:
        """Return the round of a draft.

        Args:
            draft: The proposal.
            found: The measurement; None for a duplicate, and for a draft without a plan.
            rounds: All rounds before it.
        """
        first, entry = draft.index == 0, self._unmeasured(draft)
        if draft.duplicate_of is not None:
            same = rounds[draft.duplicate_of]
            return replace(entry, plan=same.plan, loss=same.loss, verdict=DUPLICATE, duplicate_of=same.index)
        if found is None:
            return replace(entry, verdict=START if first else FAILED)
        entry = replace(entry, plan=found.plan or draft.plan, seconds=draft.seconds + found.seconds, error=found.error)
        if found.loss is None:
            return replace(entry, verdict=START if first else FAILED)
        known = [one.loss for one in rounds if one.loss is not None]
        verdict = START if first else BETTER if found.loss < min(known, default=math.inf) else WORSE
        return replace(entry, loss=found.loss, verdict=verdict)

    def rebuilt(self, entry: Round) -> PruneResult:
        """Return the network of a round, made again from its plan: the same whether the round was run now or read from the memory."""
        assert entry.plan is not None
        same = entry.plan.fingerprint == self.graph.fingerprint
        graph = self.graph if same else self._traced_like(entry.plan)
        applied = apply(self.model, entry.plan, self.inputs, graph=graph)
        model = recovered(applied.model, self.data, self.recovery, self.context.seed) if self.recovery.steps else applied.model
        report = make_report(graph, entry.plan, applied.not_followed, config_note=applied.config_note)
        return PruneResult(model, entry.plan, entry.ranking, report, applied.surgery, graph, self.inputs)

    def _traced_like(self, plan: PrunePlan) -> ModelGraph:
        further = [call.inputs for call in self.graph.program.further]
        return trace_like(self.model, self.inputs, plan.options, further)
