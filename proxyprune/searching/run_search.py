"""`search`: rounds of propose, plan, measure and remember."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from proxyprune.api import prune_ranked, trace
from proxyprune.applying.apply import apply
from proxyprune.coupling.options import TraceKeywords
from proxyprune.errors import (
    InputError,
    JournalError,
    LLMInvalidAnswerError,
    LLMRefusalError,
    LLMTruncatedError,
    ProxyPruneError,
    ScoringError,
    VerificationError,
)
from proxyprune.graph.build import trace_like
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, DataKeywords, Recovery, data_digest, held_out_loss, recovered, weights_digest
from proxyprune.measuring.journal import Journal, opened
from proxyprune.planning.budget import Target
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanKeywords, PlanRequest
from proxyprune.result import PruneResult, Report, make_report
from proxyprune.scoring import Brief, Scorer, ScoringContext, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import History, Proposer
from proxyprune.searching.proposers.by_name import proposer_named
from proxyprune.searching.proposers.scorer_proposer import ScorerProposer
from proxyprune.searching.round import BETTER, DUPLICATE, FAILED, START, WORSE, Round, kept_shares, key_of
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
            "rounds": [{key: value for key, value in entry.to_dict().items() if key != "plan"} for entry in self.rounds],
            "plan": self.plan.to_dict(),
            "report": self.report.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _SearchTask:
    """What every round needs, and never changes."""

    model: nn.Module
    inputs: ExampleInputs
    graph: ModelGraph
    data: Data
    recovery: Recovery
    request: PlanRequest
    context: ScoringContext

    def history(self, start: Ranking, rounds: Sequence[Round]) -> History:
        return History(self.graph, self.context, self.request.mode, start, tuple(rounds))

    def round(self, proposer: Proposer, start: Ranking, rounds: Sequence[Round], started: float) -> Round:
        """Return the next round; one for which the proposer had no usable answer has failed, and the search goes on."""
        history = self.history(start, rounds)
        try:
            ranking = proposer.propose(history) if rounds else start
        except (LLMInvalidAnswerError, LLMRefusalError, LLMTruncatedError) as error:
            seconds = time.perf_counter() - started
            return Round(len(rounds), history.best.ranking, None, "", {}, None, FAILED, seconds, error=f"No proposal: {error}")
        return self.measured(ranking, rounds, started)

    def measured(self, ranking: Ranking, rounds: Sequence[Round], started: float) -> Round:
        """Plan a ranking; unless that plan was measured before, cut and measure."""
        # Measuring shows whether a ranking can be relied on.
        ranking = replace(ranking, unreliable=None)
        bare = replace(ranking, channel_scores={})
        index = len(rounds)
        first = index == 0
        key, plan, kept = "", None, {}
        try:
            plan = plan_for(self.graph, ranking, self.request, model=self.model)
            key, kept = key_of(plan), kept_shares(self.graph, plan)
            earlier = next((entry for entry in rounds if entry.key == key and entry.measured), None)
            if earlier is not None:
                seconds = time.perf_counter() - started
                return Round(index, bare, earlier.plan, key, kept, earlier.loss, DUPLICATE, seconds, duplicate_of=earlier.index)
            result = prune_ranked(self.model, self.inputs, self.graph, ranking, self.request)
            plan = result.plan
            loss = held_out_loss(self._trained(result.model), self.data, self.context.seed)
        except (VerificationError, ScoringError) as error:
            seconds = time.perf_counter() - started
            return Round(index, bare, plan, key, kept, None, START if first else FAILED, seconds, error=str(error))
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            problem = "The held-out loss is not finite."
            return Round(index, bare, plan, key, kept, None, START if first else FAILED, seconds, error=problem)
        known = [entry.loss for entry in rounds if entry.loss is not None]
        verdict = START if first else BETTER if loss < min(known, default=math.inf) else WORSE
        return Round(index, bare, plan, key, kept, loss, verdict, seconds)

    def rebuilt(self, entry: Round) -> PruneResult:
        """Return the network of a round, made again from its plan: the same whether the round was run now or read from the memory."""
        assert entry.plan is not None
        same = entry.plan.fingerprint == self.graph.fingerprint
        graph = self.graph if same else self._traced_like(entry.plan)
        applied = apply(self.model, entry.plan, self.inputs, graph=graph)
        model = self._trained(applied.model)
        report = make_report(graph, entry.plan, applied.not_followed, config_note=applied.config_note)
        return PruneResult(model, entry.plan, entry.ranking, report, applied.surgery, graph, self.inputs)

    def _traced_like(self, plan: PrunePlan) -> ModelGraph:
        further = [call.inputs for call in self.graph.program.further]
        return trace_like(self.model, self.inputs, plan.options, further)

    def _trained(self, model: nn.Module) -> nn.Module:
        return recovered(model, self.data, self.recovery, self.context.seed) if self.recovery.steps else model


@dataclass(frozen=True)
class _End:
    """When a search is over.

    Attributes:
        rounds: Measurements to spend.
        patience: Measurements without improvement after which it stops, or None.
        repeats: Proposals in a row that were measured before, after which it stops.
    """

    rounds: int
    patience: int | None
    repeats: int

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
    """Where rounds go as they come, each of them: the memory and the caller's progress function, if given."""

    journal: Journal | None
    progress: Callable[[Round], None] | None

    def note_start(self, first: Ranking, base_loss: float) -> None:
        if self.journal is not None:
            self.journal.append({"what": "start", "ranking": first.to_dict(), "base_loss": base_loss})

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
        proposer: "random", "evolution" or "coordinate"; or a scorer (by name or as an object), whose brief lists what was tried and
            measured; or an object with the `Proposer` interface.
        also: Further example calls, as for `trace`; every network is verified on all of them.
        rounds: Measurements to spend, the start included; a plan that was measured before costs none.
        patience: Stop after this many measurements without improvement; None spends them all.
        start: Scorer of round 0; the proposer itself when that is a scorer, "taylor" otherwise. It also orders the channels.
        recovery: A short fine-tuning before each measurement; None measures right after the cut.
        memory: Append-only JSONL file in which every round is remembered; None forgets.
        resume: Go on with a memory that has rounds; it must belong to this network, target and way of measuring.
        seed: All randomness follows from it.
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
    _check(rounds, patience)
    chosen = _as_proposer(proposer)
    request = PlanRequest.of(target, **picked(PlanKeywords, keywords))
    data = Data.of(**picked(DataKeywords, keywords))
    opening = start if start is not None else chosen.scorer if isinstance(chosen, ScorerProposer) else DEFAULT_START
    graph = trace(model, example_inputs, also=also, **picked(TraceKeywords, keywords))
    base_loss = _finite_loss(model, data, seed)
    brief = request.brief(Brief(base_loss=base_loss))
    context = ScoringContext(model, example_inputs, tuple(data.batches), data.loss_fn, seed, brief)
    task = _SearchTask(model, example_inputs, graph, data, recovery or Recovery(), request, context)
    header = _header(task, chosen, opening)
    with contextlib.nullcontext() if memory is None else opened(memory, "search", header, resume=resume) as journal:
        diary = _Diary(journal, progress)
        first, done = _begun(task, opening, diary, base_loss)
        stopped = _go_on(task, chosen, first, done, _End(rounds, patience, chosen.repeats), diary)
    best = task.history(first, done).best
    if best.loss is None:
        raise ScoringError(f"None of {len(done)} rounds gave a network with a finite loss; the first said: {done[0].error}")
    notes = () if data.note is None else (data.note,)
    return SearchResult(task.rebuilt(best), best, tuple(done), base_loss, stopped, chosen.name, notes)


def _finite_loss(model: nn.Module, data: Data, seed: int) -> float:
    """Return the held-out loss of the unpruned network."""
    loss = held_out_loss(model, data, seed)
    if not math.isfinite(loss):
        raise ScoringError("The held-out loss of the unpruned model is not finite, so nothing can be compared with it. Look at loss_fn.")
    return loss


def _begun(task: _SearchTask, opening: str | Scorer, diary: _Diary, base_loss: float) -> tuple[Ranking, list[Round]]:
    """Return the start's ranking, made now or remembered, and the rounds that are in the memory."""
    first, done = _remembered(diary.journal, base_loss)
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
        diary.note_start(first, base_loss)
    for entry in done:
        diary.show(entry)
    return first, done


def _go_on(task: _SearchTask, proposer: Proposer, first: Ranking, done: list[Round], end: _End, diary: _Diary) -> str:
    """Add rounds to `done` until the search is over, and return why it is."""
    while (stopped := end.reached(done)) is None:
        entry = task.round(proposer, first, done, time.perf_counter())
        diary.note(entry)
        done.append(entry)
    return stopped


def _check(rounds: int, patience: int | None) -> None:
    for name, value in (("rounds", rounds), ("patience", 1 if patience is None else patience)):
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


def _header(task: _SearchTask, proposer: Proposer, opening: str | Scorer) -> dict[str, Any]:
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
    }


def _remembered(journal: Journal | None, base_loss: float) -> tuple[Ranking | None, list[Round]]:
    """Return the start's ranking and the rounds in a memory."""
    entries = () if journal is None else journal.entries
    if not entries or journal is None:
        return None, []
    try:
        if entries[0]["what"] != "start":
            raise ValueError("the first entry is not the start")
        known = float(entries[0]["base_loss"])
        first = Ranking.from_dict(entries[0]["ranking"])
        done = [Round.from_dict(entry["round"]) for entry in entries[1:]]
    except (KeyError, TypeError, ValueError, ProxyPruneError) as error:
        raise JournalError(f"The memory '{journal.path}' is damaged ({type(error).__name__}: {error}). Start with another file.") from error
    if not math.isclose(known, base_loss, rel_tol=_SAME_LOSS):
        raise JournalError(
            f"The memory '{journal.path}' was made with another loss: the unpruned network had {known:.6g} on the held-out batches, now it "
            f"has {base_loss:.6g}. Use the same loss_fn and data, or another file."
        )
    return first, done
