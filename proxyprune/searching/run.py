"""`search`: rounds of propose, plan, measure and remember."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxyprune.api import cut, trace
from proxyprune.applying.apply import apply
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
from proxyprune.measuring.held_out import Data, Recovery, data_digest, held_out_loss, recovered, weights_digest
from proxyprune.measuring.journal import Journal, opened
from proxyprune.planning.budget import Target
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import make_plan
from proxyprune.result import PruneResult, Report, make_report
from proxyprune.scoring import Brief, Scorer, ScoringContext, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.proposer import History, Proposer
from proxyprune.searching.proposers.by_name import proposer_named
from proxyprune.searching.proposers.scorer_proposer import ScorerProposer
from proxyprune.searching.round import BETTER, DUPLICATE, FAILED, START, WORSE, Round, kept_shares, key_of
from proxyprune.support.checks import is_count
from proxyprune.surgery.surgery import Surgery
from proxyprune.tracing.capture import ExampleInputs

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
class _Task:
    """What every round needs, and never changes."""

    model: nn.Module
    inputs: ExampleInputs
    graph: ModelGraph
    data: Data
    recovery: Recovery
    target: Target
    planning: Mapping[str, Any]
    context: ScoringContext

    def history(self, start: Ranking, rounds: Sequence[Round]) -> History:
        return History(self.graph, self.context, str(self.planning["mode"]), start, tuple(rounds))

    def round(self, proposer: Proposer, start: Ranking, rounds: Sequence[Round], started: float) -> Round:
        """The next round; one for which the proposer had no usable answer has failed, and the search goes on."""
        history = self.history(start, rounds)
        try:
            ranking = proposer.propose(history) if rounds else start
        except (LLMInvalidAnswerError, LLMRefusalError, LLMTruncatedError) as error:
            seconds = time.perf_counter() - started
            return Round(len(rounds), history.best.ranking, None, "", {}, None, FAILED, seconds, error=f"No proposal: {error}")
        return self.measured(ranking, rounds, started)

    def measured(self, ranking: Ranking, rounds: Sequence[Round], started: float) -> Round:
        """Plan a ranking; unless that plan was measured before, cut and measure."""
        # Measuring is what tells whether a ranking can be relied on.
        ranking = replace(ranking, unreliable=None)
        bare = replace(ranking, channel_scores={})
        index = len(rounds)
        first = index == 0
        key, plan, kept = "", None, {}
        try:
            plan = make_plan(self.graph, ranking, self.target, model=self.model, **self.planning)
            key, kept = key_of(plan), kept_shares(self.graph, plan)
            earlier = next((entry for entry in rounds if entry.key == key and entry.measured), None)
            if earlier is not None:
                seconds = time.perf_counter() - started
                return Round(index, bare, earlier.plan, key, kept, earlier.loss, DUPLICATE, seconds, duplicate_of=earlier.index)
            result = cut(self.model, self.inputs, self.graph, ranking, self.target, **self.planning)
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
        """The network of a round, made again from its plan: the same whether the round was run now or read from the memory."""
        assert entry.plan is not None
        same = entry.plan.fingerprint == self.graph.fingerprint
        graph = self.graph if same else trace_like(self.model, self.inputs, entry.plan.options)
        applied = apply(self.model, entry.plan, self.inputs, graph=graph)
        model = self._trained(applied.model)
        return PruneResult(model, entry.plan, entry.ranking, make_report(graph, entry.plan), applied.surgery, graph)

    def _trained(self, model: nn.Module) -> nn.Module:
        return recovered(model, self.data, self.recovery, self.context.seed) if self.recovery.steps else model


def search(
    model: nn.Module,
    example_inputs: ExampleInputs,
    target: Target = 0.6,
    proposer: str | Proposer | Scorer = "evolution",
    *,
    rounds: int = 16,
    patience: int | None = None,
    start: str | Scorer | None = None,
    recovery: Recovery | None = None,
    memory: str | Path | None = None,
    resume: bool = False,
    batches: Sequence[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    held_out: Sequence[Any] | None = None,
    training_loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    mode: str = "width",
    metric: str = "macs",
    round_to: int = 1,
    keep: Sequence[str] = (),
    floors: Mapping[str, int | float] | None = None,
    ceilings: Mapping[str, int | float] | None = None,
    allocation: str = "auto",
    accept_uncosted: bool = False,
    norm_groups: str = "balanced",
    conv_groups: str = "balanced",
    seed: int = 0,
    progress: Callable[[Round], None] | None = None,
) -> SearchResult:
    """Look for the best network of a budget by measuring proposals, one after the other.

    Round 0 measures the one-shot ranking of `start`, so the result is never worse than that on the held-out batches. They choose the
    winner, so its loss on them flatters it a little; judge it on data that nothing here has seen.

    Args:
        model: The network; it stays as it is.
        example_inputs: As for `prune`.
        target: As for `prune`.
        proposer: "random", "evolution" or "coordinate"; or a scorer (by name or as an object), which is told in its brief what was tried
            and what came of it; or an object with the `Proposer` interface.
        rounds: Measurements to spend, the start included; a plan that was measured before costs none.
        patience: Stop after this many measurements without improvement; None spends them all.
        start: Scorer of round 0; the proposer itself when that is a scorer, "taylor" otherwise. It also orders the channels.
        recovery: A short fine-tuning before each measurement; None measures right after the cut.
        memory: Append-only JSONL file in which every round is remembered; None forgets.
        resume: Go on with a memory that has rounds; it must belong to this network, target and way of measuring.
        batches: For scorers and for recovery.
        loss_fn: loss_fn(model, batch) -> scalar.
        held_out: For measuring; without them the last third of `batches` is held out.
        training_loss_fn: The loss for recovery, where that is another one.
        mode: As for `prune`.
        metric: As for `prune`.
        round_to: As for `prune`.
        keep: As for `prune`.
        floors: As for `prune`.
        ceilings: As for `prune`.
        allocation: As for `prune`.
        accept_uncosted: As for `prune`.
        norm_groups: As for `trace`.
        conv_groups: As for `trace`.
        seed: All randomness follows from it.
        progress: Told of every round, remembered ones included.

    Returns:
        The best network with its plan, and all rounds.

    Raises:
        JournalError: If the memory belongs to something else, is damaged, or has rounds and `resume` is false.
        ProxyPruneError: From planning or scoring; see `proxyprune.errors`. What was measured is in the memory.
    """
    _check(rounds, patience)
    chosen = _as_proposer(proposer)
    data = Data.of(batches, held_out, loss_fn, training_loss_fn)
    opening = start if start is not None else chosen.scorer if isinstance(chosen, ScorerProposer) else DEFAULT_START
    graph = trace(model, example_inputs, norm_groups=norm_groups, conv_groups=conv_groups)
    planning = {"mode": mode, "metric": metric, "round_to": round_to, "keep": tuple(keep), "floors": floors, "ceilings": ceilings}
    planning |= {"allocation": allocation} | ({"accept_uncosted": True} if accept_uncosted else {})
    base_loss = held_out_loss(model, data, seed)
    if not math.isfinite(base_loss):
        raise ScoringError("The held-out loss of the unpruned model is not finite, so nothing can be compared with it. Look at loss_fn.")
    brief = Brief(target, metric, mode, base_loss)
    context = ScoringContext(model, example_inputs, tuple(data.batches), data.loss_fn, seed, brief)
    task = _Task(model, example_inputs, graph, data, recovery or Recovery(), target, planning, context)
    header = _header(task, chosen, opening)
    with contextlib.nullcontext() if memory is None else opened(memory, "search", header, resume=resume) as journal:
        first, done = _remembered(journal, base_loss)
        if first is None:
            first = score(
                graph,
                opening,
                model=model,
                batches=data.batches,
                loss_fn=data.loss_fn,
                seed=seed,
                example_inputs=example_inputs,
                brief=brief,
            )
            _remember(journal, {"what": "start", "ranking": first.to_dict(), "base_loss": base_loss})
        for entry in done:
            _tell(progress, entry)
        stopped = _stopped(done, rounds, patience, chosen.repeats)
        while stopped is None:
            started = time.perf_counter()
            entry = task.round(chosen, first, done, started)
            _remember(journal, {"what": "round", "round": entry.to_dict()})
            done.append(entry)
            _tell(progress, entry)
            stopped = _stopped(done, rounds, patience, chosen.repeats)
    best = task.history(first, done).best
    if best.loss is None:
        raise ScoringError(f"None of {len(done)} rounds gave a network with a finite loss; the first said: {done[0].error}")
    notes = () if data.note is None else (data.note,)
    return SearchResult(task.rebuilt(best), best, tuple(done), base_loss, stopped, chosen.name, notes)


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


def _header(task: _Task, proposer: Proposer, opening: str | Scorer) -> dict[str, Any]:
    """What a memory belongs to. The budget of rounds and the patience are not in it: a search may be prolonged."""
    return {
        "fingerprint": task.graph.fingerprint,
        "weights": weights_digest(task.model),
        "data": data_digest((task.data.batches, task.data.held_out)),
        "target": task.target,
        **{name: dict(value) if isinstance(value, Mapping) else value for name, value in task.planning.items()},
        "recovery_steps": task.recovery.steps,
        "learning_rate": task.recovery.learning_rate,
        "seed": task.context.seed,
        "proposer": proposer.name,
        "start": opening if isinstance(opening, str) else opening.name,
    }


def _remembered(journal: Journal | None, base_loss: float) -> tuple[Ranking | None, list[Round]]:
    """The start's ranking and the rounds in a memory."""
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


def _remember(journal: Journal | None, entry: Mapping[str, Any]) -> None:
    if journal is not None:
        journal.append(entry)


def _tell(progress: Callable[[Round], None] | None, entry: Round) -> None:
    if progress is not None:
        progress(entry)


def _stopped(done: Sequence[Round], rounds: int, patience: int | None, most_repeats: int) -> str | None:
    """Why the search is over, or None."""
    measured = [entry for entry in done if entry.measured]
    if len(measured) >= rounds:
        return "budget"
    since = next((place for place, entry in enumerate(reversed(measured)) if entry.accepted), len(measured))
    if patience is not None and since >= patience:
        return "patience"
    repeats = next((place for place, entry in enumerate(reversed(done)) if entry.measured), len(done))
    return "repeats" if repeats >= most_repeats else None
