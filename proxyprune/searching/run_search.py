"""`search`: rounds of propose, plan, measure and remember."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from proxyprune.api import trace
from proxyprune.coupling.options import TraceKeywords
from proxyprune.errors import (
    InputError,
    JournalError,
    ProxyPruneError,
    ScoringError,
)
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, DataKeywords, Recovery, data_digest, held_out_loss, weights_digest
from proxyprune.measuring.journal import Journal, opened
from proxyprune.measuring.network_times import with_times
from proxyprune.measuring.time_budget import measured_as_planned
from proxyprune.measuring.timing import Timing
from proxyprune.planning.budget import Target
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.request import PlanKeywords, PlanRequest
from proxyprune.result import PruneResult, Report
from proxyprune.scoring import Brief, Scorer, ScoringContext, score
from proxyprune.scoring.contract import shows_time
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import Proposer
from proxyprune.searching.proposers.by_name import proposer_named
from proxyprune.searching.proposers.scorer_proposer import ScorerProposer
from proxyprune.searching.round import Round
from proxyprune.searching.search_task import SearchTask
from proxyprune.support.checks import is_count
from proxyprune.support.keywords import check_keywords, picked
from proxyprune.surgery.surgery import Surgery
from proxyprune.tracing.capture import ExampleInputs
from proxyprune.tracing.model_call import Call

SCHEMA = 1
DEFAULT_START = "taylor"

_SAME_LOSS = 1e-4  # relative; more than another machine's rounding, less than other weights or data


@dataclass(frozen=True)
class SearchResult:
    """The best network that a search found, and the way there. `save` takes it like the result of `prune`.

    Attributes:
        best: The pruned network of the best round, after the recovery when there is one.
        best_round: Its round.
        rounds: All rounds, duplicates included.
        base_loss: Held-out loss of the unpruned network.
        stopped: Why the search ended: "budget", "patience" or "repeats".
        proposer: Name of the proposer.
        notes: Sentences for the reader.
    """

    best: PruneResult
    best_round: Round
    rounds: tuple[Round, ...] = field(repr=False)
    base_loss: float
    stopped: str
    proposer: str
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The best pruned network."""
        return self.best.model

    @property
    def plan(self) -> PrunePlan:
        """Its plan."""
        return self.best.plan

    @property
    def ranking(self) -> Ranking:
        """Its ranking; channels are in the plan."""
        return self.best.ranking

    @property
    def report(self) -> Report:
        """Numbers before and after."""
        return self.best.report

    @property
    def surgery(self) -> Surgery:
        """Slices and attribute changes."""
        return self.best.surgery

    @property
    def graph(self) -> ModelGraph:
        """The traced unpruned network."""
        return self.best.graph

    @property
    def loss(self) -> float:
        """Held-out loss of the best network."""
        return math.inf if self.best_round.loss is None else self.best_round.loss

    @property
    def start_loss(self) -> float | None:
        """Held-out loss of the one-shot ranking that the search began with."""
        return self.rounds[0].loss

    @property
    def formula(self) -> str | None:
        """The formula that the best network comes from; None if no formula was proposed for its plan."""
        same = (entry.formula for entry in self.rounds if entry.key == self.best_round.key)
        return next((formula for formula in same if formula is not None), None)

    @property
    def measurements(self) -> int:
        """Rounds that were measured; duplicates are not."""
        return sum(entry.measured for entry in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "proposer": self.proposer,
            "stopped": self.stopped,
            "base_loss": self.base_loss,
            "start_loss": self.start_loss,
            "loss": None if math.isinf(self.loss) else self.loss,
            "best_round": self.best_round.index,
            "measurements": self.measurements,
            "duplicates": len(self.rounds) - self.measurements,
            "formula": self.formula,
            "rounds": [{key: value for key, value in entry.to_dict().items() if key != "plan"} for entry in self.rounds],
            "plan": self.plan.to_dict(),
            "report": self.report.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _End:
    """The conditions that end a search.

    Attributes:
        rounds: Measurements to spend.
        patience: Measurements without improvement after which it stops, or None.
        repeats: Proposals in a row that were measured before, after which it stops.
        batch: Proposals that follow from the same rounds.
        jobs: Processes that measure them.
    """

    rounds: int
    patience: int | None
    repeats: int
    batch: int = 1
    jobs: int = 1

    def batch_after(self, proposer: Proposer, before: Sequence[Round]) -> int:
        """Return the size of the batch that follows these rounds: no more than the budget, and than the proposer allows."""
        left = self.rounds - sum(entry.measured for entry in before)
        together = getattr(proposer, "together", None)
        allowed = self.batch if together is None else together(before)
        return max(1, min(self.batch, left, allowed))

    def reached(self, done: Sequence[Round]) -> str | None:
        """Return why the search is over, or None."""
        measured = [entry for entry in done if entry.measured]
        if len(measured) >= self.rounds:
            return "budget"
        since = next((place for place, entry in enumerate(reversed(measured)) if entry.accepted), len(measured))
        if self.patience is not None and since >= self.patience:
            return "patience"
        repeats = next((place for place, entry in enumerate(reversed(done)) if entry.measured), len(done))
        return "repeats" if repeats >= self.repeats else None


@dataclass(frozen=True)
class _Diary:
    """The receivers of each finished round: the memory and the caller's progress function, if given."""

    journal: Journal | None
    progress: Callable[[Round], None] | None

    def note_start(self, first: Ranking, base_loss: float, limit: int | None) -> None:
        if self.journal is not None:
            corrected = {} if limit is None else {"time_limit_nanoseconds": limit}
            self.journal.append({"what": "start", "ranking": first.to_dict(), "base_loss": base_loss, **corrected})

    def note(self, entry: Round) -> None:
        if self.journal is not None:
            self.journal.append({"what": "round", "round": entry.to_dict()})
        self.show(entry)

    def show(self, entry: Round) -> None:
        if self.progress is not None:
            self.progress(entry)


class SearchKeywords(PlanKeywords, TraceKeywords, DataKeywords, total=False):
    """Keyword arguments of `search` that other functions take too: `PlanKeywords`, `TraceKeywords` and `DataKeywords`."""


def search(
    model: nn.Module,
    example_inputs: ExampleInputs,
    target: Target = 0.6,
    proposer: str | Proposer | Scorer = "evolution",
    *,
    also: Sequence[Call] = (),
    rounds: int = 16,
    patience: int | None = None,
    start: str | Scorer | None = None,
    recovery: Recovery | None = None,
    memory: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    jobs: int = 1,
    batch: int | None = None,
    timing: Timing | None = None,
    progress: Callable[[Round], None] | None = None,
    **keywords: Unpack[SearchKeywords],
) -> SearchResult:
    """Look for the best network of a budget by measuring proposals, one after the other.

    Round 0 measures the one-shot ranking of `start`, so the result is never worse than that on the held-out batches. They choose the
    winner, so its loss on them flatters it a little; judge it on data that nothing here has seen.

    Args:
        model: The network; it stays as it is.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments; a batch of 1 makes costs per sample.
        target: Fraction of the base cost (0 < t < 1) or an absolute number ("3.4G").
        proposer: "random", "evolution", "coordinate" or "formula"; or a scorer (by name or as an object), whose brief lists what was
            tried and measured; or an object with the `Proposer` interface.
        also: Further example calls, as for `trace`; every network is verified on all of them.
        rounds: Measurements to spend, the start included; a plan that was measured before costs none.
        patience: Stop after this many measurements without improvement; None spends them all.
        start: Scorer of round 0; the proposer itself when that is a scorer, "taylor" otherwise. It also orders the channels.
        recovery: A short fine-tuning before each measurement; None measures right after the cut.
        memory: Append-only JSONL file in which every round is remembered; None forgets.
        resume: Go on with a memory that has rounds; it must belong to this network, target and way of measuring.
        seed: All randomness follows from it.
        jobs: Number of processes that measure at the same time. Model, loss and batches must survive pickling.
        batch: Proposals that are made from the same rounds and may be measured at the same time; None: `jobs`. The result depends on
            it, and not on `jobs`.
        timing: Batch, threads, dtype, and eager or compiled, for targets of time. The limit of predicted time is corrected by measuring
            the start's network, holds for every round, and is kept in the memory. The best network is measured in turns at the end.
        progress: Called with every round, remembered ones included.
        keywords: `DataKeywords` (batches, loss_fn, held_out, training_loss_fn), `PlanKeywords` (mode, metric, round_to, keep, floors,
            ceilings, remove, allocation, uniform, accept_uncosted, accept_unreliable) and `TraceKeywords` (norm_groups, conv_groups,
            adapter_ranks).

    Returns:
        The best network with its plan, and all rounds.

    Raises:
        JournalError: If the memory belongs to something else, is damaged, or has rounds and `resume` is false.
        ProxyPruneError: From planning or scoring; see `proxyprune.errors`. What was measured is in the memory.
        TypeError: If a keyword is unknown.
    """
    check_keywords(search, keywords, SearchKeywords)
    batch = jobs if batch is None else batch
    _check(rounds, patience, jobs, batch)
    chosen = _as_proposer(proposer)
    request = PlanRequest.of(target, **picked(PlanKeywords, keywords))
    data = Data.of(**picked(DataKeywords, keywords))
    opening = start if start is not None else chosen.scorer if isinstance(chosen, ScorerProposer) else DEFAULT_START
    graph = trace(model, example_inputs, also=also, **picked(TraceKeywords, keywords))
    if request.needs_times or shows_time(opening) or (isinstance(chosen, ScorerProposer) and shows_time(chosen.scorer)):
        graph = with_times(graph, model, example_inputs, timing)
    base_loss = _finite_loss(model, data, seed)
    brief = request.brief(Brief(base_loss=base_loss))
    context = ScoringContext(model, example_inputs, tuple(data.batches), data.loss_fn, seed, brief)
    task = SearchTask(model, example_inputs, graph, data, recovery or Recovery(), request, context, timing)
    header = _header(task, chosen, opening, batch)
    with contextlib.nullcontext() if memory is None else opened(memory, "search", header, resume=resume) as journal:
        diary = _Diary(journal, progress)
        first, done, limit = _begun(task, opening, diary, base_loss)
        bounded = task if limit is None else replace(task, request=request.within_time(limit))
        stopped = _go_on(bounded, chosen, first, done, _End(rounds, patience, chosen.repeats, batch, jobs), diary)
    best = task.history(first, done).best
    if best.loss is None:
        raise ScoringError(f"None of {len(done)} rounds gave a network with a finite loss; the first error was: {done[0].error}")
    notes = () if data.note is None else (data.note,)
    result = task.rebuilt(best)
    if "time" in request.targets:
        result = measured_as_planned(request, result, task.time_of)
    return SearchResult(result, best, tuple(done), base_loss, stopped, chosen.name, notes)


def _finite_loss(model: nn.Module, data: Data, seed: int) -> float:
    """Return the held-out loss of the unpruned network."""
    loss = held_out_loss(model, data, seed)
    if not math.isfinite(loss):
        raise ScoringError("The held-out loss of the unpruned model is not finite, so nothing can be compared with it. Look at loss_fn.")
    return loss


def _begun(task: SearchTask, opening: str | Scorer, diary: _Diary, base_loss: float) -> tuple[Ranking, list[Round], int | None]:
    """Return the start's ranking and the limit of time, made now or remembered, and the rounds that are in the memory."""
    first, done, limit = _remembered(diary.journal, base_loss)
    if first is None:
        context = task.context
        first = score(
            task.graph,
            opening,
            model=task.model,
            batches=task.data.batches,
            loss_fn=task.data.loss_fn,
            seed=context.seed,
            example_inputs=task.inputs,
            brief=context.brief,
        )
        limit = task.time_limit(first) if "time" in task.request.targets else None
        diary.note_start(first, base_loss, limit)
    for entry in done:
        diary.show(entry)
    return first, done, limit


def _go_on(task: SearchTask, proposer: Proposer, first: Ranking, done: list[Round], end: _End, diary: _Diary) -> str:
    """Add rounds to `done` until the search is over, and return why it is.

    All proposals of a batch follow from the rounds before it. A batch of which a part is in the memory is proposed again as a whole, and
    the rest is measured, so a search that was stopped inside a batch goes on as if it had not been.
    """
    while True:
        known = done[-1].known if _unfinished(proposer, done, end) else len(done)
        if known == len(done) and (stopped := end.reached(done)) is not None:
            return stopped
        before = done[:known]
        size = 1 if not before else end.batch_after(proposer, before)
        drafts = task.drafts(proposer, first, before, size)
        for entry in task.measured(drafts, done, end.jobs):
            diary.note(entry)
            done.append(entry)


def _unfinished(proposer: Proposer, done: Sequence[Round], end: _End) -> bool:
    """Return True if the last rounds are a part of a batch."""
    if not done or not done[-1].known:
        return False
    before = done[: done[-1].known]
    return len(done) - len(before) < end.batch_after(proposer, before)


def _check(rounds: int, patience: int | None, jobs: int, batch: int) -> None:
    for name, value in (("rounds", rounds), ("patience", 1 if patience is None else patience), ("jobs", jobs), ("batch", batch)):
        if not is_count(value, 1):
            raise InputError(f"Expected {name} to be a whole number from 1 up, found {value!r}.")


def _as_proposer(proposer: str | Proposer | Scorer) -> Proposer:
    if isinstance(proposer, str):
        return proposer_named(proposer)
    if callable(getattr(proposer, "propose", None)):
        return proposer  # type: ignore[return-value]
    if callable(getattr(proposer, "score", None)):
        return ScorerProposer(proposer)  # type: ignore[arg-type]
    raise InputError(
        f"Expected a proposer (with propose(history)) or a scorer (with score(graph, context)), found {type(proposer).__name__}."
    )


def _header(task: SearchTask, proposer: Proposer, opening: str | Scorer, batch: int) -> dict[str, Any]:
    """Return what a memory belongs to. The budget of rounds and the patience are not in it: a search may be prolonged."""
    return {
        "fingerprint": task.graph.fingerprint,
        "weights": weights_digest(task.model),
        "data": data_digest((task.data.batches, task.data.held_out)),
        "target": task.request.target,
        "mode": task.request.mode,
        **task.request.recorded(),
        "recovery_steps": task.recovery.steps,
        "learning_rate": task.recovery.learning_rate,
        "seed": task.context.seed,
        "proposer": proposer.name,
        "start": opening if isinstance(opening, str) else opening.name,
        **({"batch": batch} if batch > 1 else {}),
        **({"timing": (task.timing or Timing()).to_dict()} if task.request.needs_times else {}),
    }


def _remembered(journal: Journal | None, base_loss: float) -> tuple[Ranking | None, list[Round], int | None]:
    """Return the start's ranking, the rounds in a memory, and the limit of time."""
    entries = () if journal is None else journal.entries
    if not entries or journal is None:
        return None, [], None
    try:
        if entries[0]["what"] != "start":
            raise ValueError("the first entry is not the start")
        known = float(entries[0]["base_loss"])
        first = Ranking.from_dict(entries[0]["ranking"])
        limit = None if "time_limit_nanoseconds" not in entries[0] else int(entries[0]["time_limit_nanoseconds"])
        done = [Round.from_dict(entry["round"]) for entry in entries[1:]]
    except (KeyError, TypeError, ValueError, ProxyPruneError) as error:
        raise JournalError(f"The memory '{journal.path}' is damaged ({type(error).__name__}: {error}). Start with another file.") from error
    if not math.isclose(known, base_loss, rel_tol=_SAME_LOSS):
        raise JournalError(
            f"The memory '{journal.path}' was made with another loss: the unpruned network had {known:.6g} on the held-out batches, now it "
            f"has {base_loss:.6g}. Use the same loss_fn and data, or another file."
        )
    return first, done, limit
