"""`compare`: rank with every scorer, cut in every way, measure, and write each cell down as it comes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from scipy import stats
from torch import nn

from proxyprune.api import prune_ranked, trace
from proxyprune.comparing.torch_pruning_peer import PeerTask, check_peers, peer_network
from proxyprune.comparing.values import Case, Cell, Comparison, Scoring
from proxyprune.coupling.options import TraceKeywords
from proxyprune.errors import InputError, ProxyPruneError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, DataKeywords, Recovery, held_out_loss, recovered, weights_digest
from proxyprune.measuring.journal import Journal, opened
from proxyprune.measuring.network_times import with_times
from proxyprune.planning.budget import Target, parse_budget
from proxyprune.planning.request import CutKeywords, PlanRequest
from proxyprune.scoring import Brief, Scorer, find, score
from proxyprune.scoring.contract import shows_time
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.keywords import check_keywords, picked
from proxyprune.support.seeds import derived_seed
from proxyprune.tracing.capture import ExampleInputs
from proxyprune.tracing.model_call import Call

Quality = Callable[[nn.Module], float]
"""The caller's own measure of a network, such as its accuracy."""

UNPRUNED = "(unpruned)"


@dataclass(frozen=True)
class _ComparisonTask:
    """Everything that a cell depends on besides its own coordinates."""

    model: nn.Module
    inputs: ExampleInputs
    graph: ModelGraph
    data: Data
    recovery: Recovery
    calibration: int | None
    quality: Quality | None
    requests: Mapping[Case, PlanRequest]

    def settings(self) -> dict[str, Any]:
        """Return how everything is measured and planned, as plain JSON types."""
        return {
            "recovery_steps": self.recovery.steps,
            "learning_rate": self.recovery.learning_rate,
            "batches": len(self.data.batches),
            "held_out_batches": len(self.data.held_out),
            "calibration_batches": self.calibration,
            **self.anyone.recorded(),
        }

    @property
    def anyone(self) -> PlanRequest:
        """The request of some case; they differ in target and mode only."""
        return next(iter(self.requests.values()))


@dataclass(frozen=True)
class _Record:
    """Measurements of earlier runs, and the place of new ones."""

    journal: Journal | None
    progress: Callable[[str], None] | None
    scorings: dict[tuple[str, int], Scoring] = field(default_factory=dict)
    cells: dict[tuple[str, Case, int], Cell] = field(default_factory=dict)

    def load(self) -> None:
        """Read the journal; what failed is tried again."""
        for entry in self.journal.entries if self.journal is not None else ():
            if entry["value"]["error"] is not None:
                continue
            if entry["what"] == "scoring":
                scoring = Scoring.from_dict(entry["value"])
                self.scorings[scoring.scorer, scoring.seed] = scoring
            else:
                cell = Cell.from_dict(entry["value"])
                self.cells[cell.scorer, Case(cell.mode, cell.target), cell.seed] = cell

    def scoring(self, name: str, seed: int, make: Callable[[], Scoring]) -> Scoring:
        if (name, seed) not in self.scorings:
            self._say(f"scoring with {name}, seed {seed}")
            self.scorings[name, seed] = self._kept("scoring", make())
        return self.scorings[name, seed]

    def cell(self, name: str, case: Case, seed: int, make: Callable[[], Cell]) -> Cell:
        if (name, case, seed) not in self.cells:
            self._say(f"{name}, {case}, seed {seed}")
            self.cells[name, case, seed] = self._kept("cell", make())
        return self.cells[name, case, seed]

    def _kept(self, what: str, value: Any) -> Any:
        if self.journal is not None:
            self.journal.append({"what": what, "value": value.to_dict()})
        return value

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text)


class CompareKeywords(CutKeywords, TraceKeywords, DataKeywords, total=False):
    """Keyword arguments of `compare` that other functions take too: `CutKeywords`, `TraceKeywords` and `DataKeywords`."""


def compare(
    model: nn.Module,
    example_inputs: ExampleInputs,
    scorers: Sequence[str | Scorer] | Mapping[str, str | Scorer] = ("magnitude", "taylor", "random"),
    *,
    also: Sequence[Call] = (),
    targets: Sequence[Target] = (0.8, 0.6, 0.4),
    modes: Sequence[str] = ("width",),
    cases: Sequence[Case] | None = None,
    recovery: Recovery | None = None,
    calibration: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    peers: Sequence[str] = (),
    quality: Quality | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    **keywords: Unpack[CompareKeywords],
) -> Comparison:
    """Measure what each scorer's rankings are worth on one network.

    A scorer, a case or a seed that fails is a cell with an error; the others go on.

    Args:
        model: The trained network; it stays as it is.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments; a batch of 1 makes costs per sample.
        scorers: Names or scorers; a mapping gives them the names that they are listed under.
        also: Further example calls, as for `trace`; every network is verified on all of them.
        targets: Budgets.
        modes: What may be cut; every mode is combined with every target.
        cases: The combinations to measure, in the place of all of modes and targets.
        recovery: The short fine-tuning that follows every cut; None measures without one.
        calibration: How many of the batches a scorer sees, drawn anew for each seed; None shows it all of them.
        seeds: Every scorer, case and recovery is repeated with each.
        peers: Pruners of other libraries that cut the same network to the same budgets: "torch-pruning-magnitude" and
            "torch-pruning-taylor". Where one fails, its cells have an error.
        quality: Another measure of a network, taken at the end of each cell.
        journal: File that every measurement is appended to, so that a killed comparison can go on; None keeps nothing.
        resume: Whether to go on with the measurements in `journal`.
        progress: Called before each measurement that is not in the journal, with a line that describes it.
        keywords: `DataKeywords` (batches, loss_fn, held_out, training_loss_fn), `CutKeywords` (metric, round_to, keep, floors, ceilings,
            remove, allocation, uniform, accept_uncosted) and `TraceKeywords` (norm_groups, conv_groups, adapter_ranks).

    Returns:
        All measurements, in the order of scorers, cases and seeds.

    Raises:
        InputError: If the arguments make no sense together.
        MissingNeedError: If there is nothing to measure with.
        JournalError: If the journal belongs to another comparison.
        TypeError: If a keyword is unknown.
    """
    check_keywords(compare, keywords, CompareKeywords)
    arms, peers = _arms(scorers), check_peers(peers)
    chosen = tuple(cases) if cases is not None else tuple(Case(mode, target) for mode in modes for target in targets)
    _check(chosen, seeds)
    cuts = PlanRequest.of(chosen[0].target, **picked(CutKeywords, keywords))
    requests = {case: replace(cuts, target=case.target, mode=case.mode) for case in chosen}
    data = Data.of(**picked(DataKeywords, keywords))
    graph = trace(model, example_inputs, also=also, **picked(TraceKeywords, keywords))
    if any(request.needs_times for request in requests.values()) or any(shows_time(arm) for arm in arms.values()):
        graph = with_times(graph, model, example_inputs)
    task = _ComparisonTask(model, example_inputs, graph, data, recovery or Recovery(), calibration, quality, requests)
    with _journal(journal, _header(task), resume) as opened_journal:
        record = _Record(opened_journal, progress)
        record.load()
        oracle = score(graph, "ablation", model=model, batches=data.held_out, loss_fn=data.loss_fn, example_inputs=example_inputs)
        base = tuple(record.cell(UNPRUNED, Case("width", 1.0), seed, partial(_unpruned, task, seed)) for seed in seeds)
        scorings, cells = _all_measured(task, arms, seeds, oracle, record)
        cells += [
            record.cell(peer, case, seed, partial(_peer_measured, task, peer, case, seed))
            for peer in peers
            for seed in seeds
            for case in requests
        ]
    order = [*arms, *peers]
    return Comparison(
        model_class=graph.model_class,
        fingerprint=graph.fingerprint,
        base_macs=graph.macs,
        base=base,
        oracle=oracle,
        scorings=scorings,
        cells=tuple(sorted(cells, key=lambda cell: (order.index(cell.scorer), chosen.index(Case(cell.mode, cell.target))))),
        settings={**task.settings(), "scorers": list(arms), "seeds": list(seeds), **({"peers": list(peers)} if peers else {})},
        notes=() if data.note is None else (data.note,),
        graph=graph,
    )


def _all_measured(
    task: _ComparisonTask, arms: Mapping[str, Scorer], seeds: Sequence[int], oracle: Ranking, record: _Record
) -> tuple[tuple[Scoring, ...], list[Cell]]:
    """Return the rankings of all scorers and seeds, and the cells of all cases; what is in the record is not measured again."""
    scorings, cells = [], []
    for name, scorer in arms.items():
        for seed in seeds:
            scoring = record.scoring(name, seed, partial(_scored, task, name, scorer, seed, oracle))
            scorings.append(scoring)
            cells += [record.cell(name, case, seed, partial(_measured, task, scoring, case)) for case in task.requests]
    return tuple(scorings), cells


def _header(task: _ComparisonTask) -> dict[str, Any]:
    """Return what a journal belongs to; it stays as it was before there were allocations, unless one is chosen."""
    settings = task.settings()
    if settings["allocation"] == PlanRequest.allocation:
        del settings["allocation"]
    return {"fingerprint": task.graph.fingerprint, "weights": weights_digest(task.model), **settings}


def _arms(scorers: Sequence[str | Scorer] | Mapping[str, str | Scorer]) -> dict[str, Scorer]:
    if isinstance(scorers, str):
        raise InputError(f"Expected a list of scorers, found the text {scorers!r}. Pass ({scorers!r},).")
    named = scorers.items() if isinstance(scorers, Mapping) else [(each if isinstance(each, str) else each.name, each) for each in scorers]
    arms: dict[str, Scorer] = {}
    for name, scorer in named:
        if name in arms:
            raise InputError(f"The scorer '{name}' is listed twice. Pass a mapping to give each its own name.")
        arms[name] = find(scorer, {}) if isinstance(scorer, str) else scorer
    if not arms:
        raise InputError("There is no scorer to compare. Name at least one; `scorers()` lists them.")
    return arms


def _check(cases: Sequence[Case], seeds: Sequence[int]) -> None:
    if not cases or not seeds:
        raise InputError(f"Expected at least one case and one seed, found {len(cases)} cases and {len(seeds)} seeds.")
    if len(set(cases)) < len(cases) or len(set(seeds)) < len(seeds):
        raise InputError("A case or a seed is listed twice.")


def _journal(path: str | Path | None, header: Mapping[str, Any], resume: bool) -> contextlib.AbstractContextManager[Journal | None]:
    return contextlib.nullcontext() if path is None else opened(path, "comparison", header, resume=resume)


def calibration_of(batches: Sequence[Any], count: int | None, seed: int) -> tuple[Any, ...]:
    """Return the batches that scorers see under a seed: `count` of them, in their order; all of them for None."""
    if count is None or count >= len(batches):
        return tuple(batches)
    chosen = torch.randperm(len(batches), generator=torch.Generator().manual_seed(derived_seed(seed, "calibration")))[:count]
    return tuple(batches[index] for index in sorted(chosen.tolist()))


def ranking_tau(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Kendall's tau-b over the keys of `one`; None when either is constant."""
    tau = float(stats.kendalltau(list(one.values()), [other[key] for key in one]).statistic)
    return tau if math.isfinite(tau) else None


def _scored(task: _ComparisonTask, name: str, scorer: Scorer, seed: int, oracle: Ranking) -> Scoring:
    started = time.perf_counter()
    ranking: Ranking | None = None
    error: str | None = None
    metered, meter = _metered(scorer)
    try:
        ranking = score(
            task.graph,
            metered,
            model=task.model,
            batches=calibration_of(task.data.batches, task.calibration, seed),
            loss_fn=task.data.loss_fn,
            seed=seed,
            example_inputs=task.inputs,
            brief=Brief(metric=task.anyone.metric),
        )
    except ProxyPruneError as problem:
        error = str(problem)
    seconds = time.perf_counter() - started
    tau = None if ranking is None else ranking_tau(ranking.scores, oracle.scores)
    return Scoring(name, seed, seconds, meter.dollars, tau, ranking, error)


@dataclass
class _Meter:
    """Hears what a scorer reports about itself, adds up the money, and passes everything on."""

    listener: Callable[[Any], None] | None
    dollars: float | None = None

    def __call__(self, event: Any) -> None:
        spent = getattr(event, "spent_usd", None)
        if isinstance(spent, int | float):
            self.dollars = (self.dollars or 0.0) + float(spent)
        if self.listener is not None:
            self.listener(event)


def _metered(scorer: Scorer) -> tuple[Scorer, _Meter]:
    """Return the scorer with a meter in the place of its observer, where it has one: scorers that ask language models do."""
    meter = _Meter(getattr(scorer, "observer", None))
    candidate: Any = scorer
    if not dataclasses.is_dataclass(candidate) or all(entry.name != "observer" for entry in dataclasses.fields(candidate)):
        return scorer, meter
    replaced: Any = dataclasses.replace(candidate, observer=meter)  # type: ignore[type-var]  # a scorer with an observer is a dataclass
    return replaced, meter


def _measured(task: _ComparisonTask, scoring: Scoring, case: Case) -> Cell:
    empty = Cell(scoring.scorer, case.mode, case.target, scoring.seed)
    if scoring.ranking is None:
        return replace(empty, error="There is no ranking to plan with.")
    started = time.perf_counter()
    try:
        ranking = replace(scoring.ranking, unreliable=None)  # measuring shows whether it can be relied on
        result = prune_ranked(task.model, task.inputs, task.graph, ranking, task.requests[case])
        cell = _judged(task, result.model, empty)
    except ProxyPruneError as error:
        return replace(empty, seconds=time.perf_counter() - started, error=str(error))
    return replace(cell, macs=result.plan.macs, params=result.plan.params, seconds=time.perf_counter() - started)


def _peer_measured(task: _ComparisonTask, peer: str, case: Case, seed: int) -> Cell:
    """Cut with another library and measure; whatever it or its network raises becomes the cell's error."""
    empty = Cell(peer, case.mode, case.target, seed)
    if case.mode != "width":
        return replace(empty, error="torch-pruning's pruner narrows widths; it removes no blocks.")
    started = time.perf_counter()
    metric = task.anyone.metric
    base = task.graph.params if metric == "params" else task.graph.macs
    limit = parse_budget(case.target, base=base, metric=metric).limit
    batches = calibration_of(task.data.batches, task.calibration, seed)
    try:
        small = peer_network(peer, PeerTask(task.model, task.inputs, metric, base, limit, batches, task.data.loss_fn))
        cell = _judged(task, small.model, empty)
    except Exception as error:  # noqa: BLE001  another library's failure is a result here
        text = next(iter(str(error).strip().splitlines()), "no message")
        return replace(empty, seconds=time.perf_counter() - started, error=f"{type(error).__name__}: {text[:200]}")
    return replace(cell, macs=small.macs, params=small.params, seconds=time.perf_counter() - started)


def _unpruned(task: _ComparisonTask, seed: int) -> Cell:
    started = time.perf_counter()
    cell = _judged(task, task.model, Cell(UNPRUNED, "width", 1.0, seed))
    return replace(cell, macs=task.graph.macs, params=task.graph.params, seconds=time.perf_counter() - started)


def _judged(task: _ComparisonTask, model: nn.Module, cell: Cell) -> Cell:
    """Measure a network right away and after recovery. The noise is the same for all, so that networks and not noise are compared."""
    loss = held_out_loss(model, task.data, seed=0)
    after: float | None = None
    if task.recovery.steps:
        model = recovered(model, task.data, task.recovery, cell.seed)
        after = held_out_loss(model, task.data, seed=0)
    quality = None if task.quality is None else float(task.quality(model))
    return replace(cell, loss=_finite(loss), recovered_loss=_finite(after), quality=_finite(quality))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
