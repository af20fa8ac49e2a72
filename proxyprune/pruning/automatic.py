"""`scorer="auto"`: try the scorers that the data allows, measure each cut on held-out batches, and take the best."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from proxyprune.api import prune_ranked
from proxyprune.compensation.calibration_pass import CalibrationData
from proxyprune.compensation.report import LOSS, OUTPUT_ERROR
from proxyprune.errors import MissingNeedError, ProxyPruneError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import HELD_OUT_SHARE, Data, held_out_loss
from proxyprune.planning.request import MODES, PlanRequest
from proxyprune.pruning.task import PruneTask
from proxyprune.result import Trial, Trials
from proxyprune.scoring import NEEDS, Ranking, ScoringContext, score, scorers
from proxyprune.support.nested import tensors_of
from proxyprune.tracing.capture import evaluation
from proxyprune.tracing.module_state import unchanged

AUTO_SCORER = "auto"
TRIED = ("obs", "fisher", "taylor", "wanda", "magnitude")
"""Scorers that are tried, in this order; those that are not installed, or that the data does not allow, are left out."""


@dataclass(frozen=True)
class Choice:
    """The scorer and mode that were chosen.

    Attributes:
        ranking: By the scorer that was best.
        request: The request with the mode that was best.
        trials: The table.
    """

    ranking: Ranking = field(repr=False)
    request: PlanRequest
    trials: Trials = field(repr=False)


@dataclass(frozen=True)
class GivenRanking:
    """A ranking that was made earlier, as a scorer."""

    ranking: Ranking
    needs: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Name of the scorer that made it."""
        return self.ranking.scorer

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Return the ranking; the caller checks that it fits the graph."""
        return self.ranking


def split(batches: Sequence[Any] | None, held_out: Sequence[Any] | None) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return batches to calibrate on and batches that decide: those given, or the last third.

    Raises:
        MissingNeedError: If there are fewer than two batches.
    """
    own = tuple(batches or ())
    if held_out and own:
        return own, tuple(held_out)
    if len(own) < 2:
        raise MissingNeedError(
            f'scorer="auto" measures each trial on batches that no scorer has used, and found {len(own)} calibration batches. Give at '
            "least two (batches=[...]; in a model file, calibration_batches()), or name a scorer."
        )
    count = max(1, round(len(own) * HELD_OUT_SHARE))
    return own[:-count], own[-count:]


def chosen(
    task: PruneTask, graph: ModelGraph, request: PlanRequest, modes: Sequence[str], deciding: tuple[Any, ...], seconds: float | None
) -> Choice:
    """Try scorers and modes, and return the best.

    Cuts that are the same are measured once. Of equal values the earlier trial is taken. The same arguments give the same choice, unless
    `seconds` ends the trials.

    Args:
        task: The pruning; its batches are for calibration alone.
        graph: Trace of the unpruned network.
        request: What is asked of the plan.
        modes: Modes to try.
        deciding: Batches that are measured on.
        seconds: Start no trial after this time, once a cut is measured; None tries all.

    Raises:
        ProxyPruneError: From the first trial, if none can be measured.
    """
    started = time.perf_counter()
    names, unmeasured = _allowed(task)
    judge = _Judge(task, deciding)
    tried: list[Trial] = []
    best: tuple[float, int] | None = None
    known: dict[Any, int] = {}
    first: ProxyPruneError | None = None
    rankings: dict[str, Ranking] = {}
    for name, mode in ((name, mode) for name in names for mode in modes):
        if best is not None and seconds is not None and time.perf_counter() - started > seconds:
            tried.append(Trial(name, mode, None, 0.0, note="not tried: the time was up"))
            continue
        own, begun = replace(task, scorer=name), time.perf_counter()
        task.say(f"trying {name}, {mode}")
        try:
            if name not in rankings:
                rankings[name] = _ranked(own, graph, replace(request, mode=modes[-1]))
            result = prune_ranked(task.model, task.example_inputs, graph, rankings[name], replace(request, mode=mode))
            key = tuple(result.plan.kept.items()), result.plan.removed_blocks
            if key in known:
                same = tried[known[key]]
                tried.append(Trial(name, mode, None, time.perf_counter() - begun, note=f"the same cut as {same.scorer}, {same.mode}"))
                continue
            known[key] = len(tried)
            result = own.compensated(result) if task.compensate else result
            value = judge.value(result.model)
        except ProxyPruneError as error:
            first = first or error
            tried.append(Trial(name, mode, None, time.perf_counter() - begun, note=str(error).partition(". ")[0][:200]))
            continue
        tried.append(Trial(name, mode, value if math.isfinite(value) else None, time.perf_counter() - begun))
        if math.isfinite(value) and (best is None or value < best[0]):
            best = value, len(tried) - 1
    if best is None:
        raise first or MissingNeedError(f'scorer="auto" found no cut with a finite {judge.measure} on the held-out batches. Name a scorer.')
    _, place = best
    tried[place] = replace(tried[place], chosen=True)
    taken = tried[place]
    table = Trials(judge.measure, len(deciding), tuple(tried), unmeasured)
    return Choice(rankings[taken.scorer], replace(request, mode=taken.mode), table)


def note_of(trials: Trials) -> str:
    """Return a sentence for the report."""
    taken = next(trial for trial in trials.tried if trial.chosen)
    measured = sum(trial.value is not None for trial in trials.tried)
    return (
        f"Scorer 'auto' measured {measured} cuts and took '{taken.scorer}' in mode '{taken.mode}': the least {trials.measure} on "
        f"{trials.batches} held-out batch{'' if trials.batches == 1 else 'es'}."
    )


def modes_of(graph: ModelGraph, asked: str | None) -> tuple[str, ...]:
    """Return the modes to try: the one that was asked for, or all that the network allows."""
    if asked is not None:
        return (asked,)
    return MODES if any(block.removable for block in graph.blocks) else MODES[:1]


def _allowed(task: PruneTask) -> tuple[list[str], dict[str, str]]:
    """Return the scorers to try, and why others are not."""
    installed = {info.name: info for info in scorers()}
    names, others = [], {}
    for name in TRIED:
        info = installed.get(name)
        if info is None or info.needs is None:
            others[name] = "not installed"
        elif task.loss_fn is None and any("loss_fn" in NEEDS[need] for need in info.needs):
            others[name] = "needs a loss"
        else:
            names.append(name)
    return names, others


def _ranked(task: PruneTask, graph: ModelGraph, request: PlanRequest) -> Ranking:
    """Score the unpruned network; block scores too, if whole blocks may leave."""
    return score(
        graph,
        task.scorer,
        model=task.model,
        batches=task.batches,
        loss_fn=task.loss_fn,
        seed=task.seed,
        example_inputs=task.example_inputs,
        brief=request.brief(task.brief),
    )


class _Judge:
    """Measures networks on the deciding batches: by the loss, or by the distance of the outputs to those of the unpruned network."""

    def __init__(self, task: PruneTask, deciding: tuple[Any, ...]) -> None:
        self._task = task
        self._data = CalibrationData(deciding, task.loss_fn, task.seed)
        self.measure = LOSS if task.loss_fn is not None else OUTPUT_ERROR
        self._wanted = [] if task.loss_fn is not None else list(self._outputs(task.model))

    def value(self, model: nn.Module) -> float:
        """Smaller is better; infinity if it is not finite."""
        if self._task.loss_fn is not None:
            data = Data(self._data.batches, self._data.batches, self._task.loss_fn)
            return held_out_loss(model, data, self._task.seed)
        error = size = 0.0
        for found, wanted in zip(self._outputs(model), self._wanted, strict=True):
            for one, other in zip(found, wanted, strict=True):
                error += float((one.double() - other.double()).square().sum())
                size += float(other.double().square().sum())
        return error / size if size and math.isfinite(error) else math.inf

    def _outputs(self, model: nn.Module) -> Iterator[tuple[torch.Tensor, ...]]:
        with unchanged(model), evaluation(model):
            for index in range(len(self._data.batches)):
                yield tuple(value for value in tensors_of(self._data.run(model, index)) if value.is_floating_point())
