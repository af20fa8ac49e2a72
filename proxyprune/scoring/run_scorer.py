"""The scoring stage: graph + scorer -> ranking, with everything checked on the way in and on the way out."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

from proxyprune.errors import InputError, InvalidScoreError, MissingNeedError, ProxyPruneError, ScoringError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.brief import Brief
from proxyprune.scoring.contract import NEEDS, LossFunction, Scorer, ScoringContext, check_contract, check_needs
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import find
from proxyprune.support.checks import is_number, listed

if TYPE_CHECKING:
    from torch import nn

    from proxyprune.tracing.model_call import ExampleInputs

_LISTED = 5


def score(
    graph: ModelGraph,
    scorer: str | Scorer = "magnitude",
    *,
    model: nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
    example_inputs: ExampleInputs | None = None,
    options: Mapping[str, Any] | None = None,
    brief: Brief | None = None,
) -> Ranking:
    """Ask a scorer how much each block matters.

    Args:
        graph: The traced model.
        scorer: A registered name (see `scorers()`), or an object that follows the `Scorer` contract.
        model: The traced model itself; required by scorers that read weights or run it.
        batches: Calibration batches; read once, in order, and kept in memory, because scorers go over them several times.
        loss_fn: Scalar loss of the model on one batch.
        seed: All randomness follows from it.
        example_inputs: Passed on to the scorer.
        options: Arguments for making a scorer that is given by name, such as {"norm": "l1"}.
        brief: The goal, the diffusion interval and earlier attempts, for scorers that reason about them.

    Returns:
        A ranking that covers every block of the graph, in graph order.

    Raises:
        InputError: If graph, seed or options cannot be used.
        UnknownNameError: If no scorer has this name.
        ScorerLoadError: If the scorer cannot be imported or does not follow the contract.
        MissingNeedError: If it needs something that was not given.
        WeightsError: If the model's weights are not finite.
        InvalidScoreError: If it returns too few, unknown, out-of-range or non-finite scores.
        ScoringError: If it fails in any other way.
    """
    if not isinstance(graph, ModelGraph):
        raise InputError(
            f"Expected graph to be a traced model, found {type(graph).__name__}. Pass proxyprune.trace(model, example_inputs)."
        )
    judge = _resolve(scorer, options)
    context = ScoringContext(model, example_inputs, _as_tuple(batches), loss_fn, _as_seed(seed), brief or Brief())
    check_needs(judge, context)
    if model is not None:
        from proxyprune.scoring.tools.weights import check_weights  # imports torch, which a text-only scorer can do without

        check_weights(model, values_needed=any("model" in NEEDS[need] for need in judge.needs))
    try:
        ranking = _with_removal(judge, graph, context, _scored(judge, graph, context))
    except ProxyPruneError:
        raise
    except Exception as error:
        raise ScoringError(
            f"Scorer '{judge.name}' ({type(judge).__module__}) raised {type(error).__name__}: {error}. "
            "This is a defect of the scorer or of loss_fn; the original error is above."
        ) from error
    return check_ranking(graph, ranking, judge.name)


def _scored(judge: Scorer, graph: ModelGraph, context: ScoringContext) -> Ranking:
    """Return what a scorer returns; every attribute of the model is afterwards as before."""
    if context.model is None:
        return judge.score(graph, context)
    from proxyprune.tracing.module_state import unchanged  # imports torch, which a text-only scorer can do without

    with unchanged(context.model):
        return judge.score(graph, context)


def _with_removal(judge: Scorer, graph: ModelGraph, context: ScoringContext, ranking: Ranking) -> Ranking:
    """Add removal scores to a ranking made from channels, where there are batches to measure blocks on.

    A scorer that reads no batches costs an extra pass over them, so this happens only when whole blocks may leave.
    """
    wanted = context.brief.mode != "width" or any("batches" in NEEDS[need] for need in judge.needs)
    measurable = context.model is not None and bool(context.batches) and context.loss_fn is not None
    if not isinstance(ranking, Ranking) or ranking.removal_scores or not ranking.channel_scores or not (wanted and measurable):
        return ranking
    if not any(block.removable for block in graph.blocks):
        return ranking
    from proxyprune.scoring.tools.block_influence import REMOVAL_NOTE, influence_scores  # imports torch

    scores = influence_scores(graph, judge.name, context)
    return dataclasses.replace(ranking, removal_scores=scores, notes=(*ranking.notes, REMOVAL_NOTE))


def check_ranking(graph: ModelGraph, ranking: object, scorer: str) -> Ranking:
    """Validate what a scorer returned, and bring it into graph order with plain floats.

    Args:
        graph: The graph that was scored.
        ranking: Whatever the scorer returned.
        scorer: Its name, for the messages.

    Raises:
        InvalidScoreError: If a block is missing or unknown, a value is not a finite number or out of range, or channel scores do not fit
            their groups.
    """
    if not isinstance(ranking, Ranking):
        raise InvalidScoreError(f"Scorer '{scorer}' returned {type(ranking).__name__}; expected a proxyprune.Ranking.")
    wanted = [block.id for block in graph.blocks]
    missing = [block for block in wanted if block not in ranking.scores]
    unknown = [block for block in ranking.scores if block not in graph.block_by_id]
    if missing or unknown:
        found = [f"{_list(missing)} missing"] if missing else []
        found += [f"{_list(unknown)} not in the graph"] if unknown else []
        raise InvalidScoreError(
            f"Scorer '{scorer}' must score each of the {len(wanted)} blocks once, found {len(ranking.scores)} scores: {'; '.join(found)}. "
            "Use the ids of graph.blocks."
        )
    notes = ranking.notes
    if ranking.scorer != scorer:
        notes = (*notes, f"Scorer '{scorer}' returned a ranking that names '{ranking.scorer}' as its scorer.")
    return dataclasses.replace(
        ranking,
        notes=notes,
        scores={block: _block_score(scorer, block, ranking.scores[block]) for block in wanted},
        channel_scores=_channel_scores(graph, ranking.channel_scores, scorer),
        removal_scores=_removal_scores(wanted, ranking.removal_scores, scorer),
        confidence=_confidence(scorer, ranking.confidence),
    )


def _resolve(scorer: str | Scorer, options: Mapping[str, Any] | None) -> Scorer:
    if isinstance(scorer, str):
        return find(scorer, options or {})
    if isinstance(scorer, type):
        raise InputError(f"Expected a scorer object or name, found the class {scorer.__name__}. Pass an instance: {scorer.__name__}(...).")
    if options:
        raise InputError(f"options={dict(options)!r} only serve a scorer given by name. Give them to {type(scorer).__name__}(...) itself.")
    return check_contract(scorer, f"The object {type(scorer).__name__}")


def _as_tuple(batches: Iterable[Any] | None) -> tuple[Any, ...] | None:
    if batches is None:
        return None
    if isinstance(batches, str | bytes | Mapping) or hasattr(batches, "shape"):
        raise MissingNeedError(
            f"Expected batches to be a list of batches, found one {type(batches).__name__}. Put it in a list: batches=[batch]."
        )
    return tuple(batches)


def _as_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex):
        raise InputError(f"Expected seed to be an integer, found {seed!r}.")
    return operator.index(seed)


def _block_score(scorer: str, block: str, value: object) -> float:
    if not is_number(value, 0.0, 1.0):
        raise InvalidScoreError(f"Scorer '{scorer}' gave block '{block}' the score {value!r}; expected a finite number in [0, 1].")
    return float(value)


def _removal_scores(wanted: list[str], scores: Mapping[str, float], scorer: str) -> dict[str, float]:
    if scores and scores.keys() != set(wanted):
        raise InvalidScoreError(
            f"Scorer '{scorer}' must give a removal score to each of the {len(wanted)} blocks or to none; found {len(scores)}: "
            f"{_list(sorted(set(wanted) ^ scores.keys()))} missing or unknown. Use the ids of graph.blocks."
        )
    return {block: _block_score(scorer, block, scores[block]) for block in wanted if scores}


def _confidence(scorer: str, value: object) -> float | None:
    if value is None:
        return None
    if not is_number(value, -1.0, 1.0):
        raise InvalidScoreError(f"Scorer '{scorer}' gave the confidence {value!r}; expected a Kendall tau in [-1, 1], or None.")
    return float(value)


def _channel_scores(graph: ModelGraph, scores: Mapping[str, tuple[float, ...]], scorer: str) -> dict[str, tuple[float, ...]]:
    unknown = [group for group in scores if group not in graph.by_id]
    if unknown:
        raise InvalidScoreError(
            f"Scorer '{scorer}' gave channel scores for {_list(unknown)}, which is not a channel group. Use the ids of graph.groups."
        )
    checked: dict[str, tuple[float, ...]] = {}
    for group in graph.groups:
        if group.id not in scores:
            continue
        values = scores[group.id]
        if len(values) != group.atoms:
            raise InvalidScoreError(
                f"Scorer '{scorer}' gave {len(values)} channel scores for group '{group.id}'; expected {group.atoms}, one for each atom."
            )
        for atom, value in enumerate(values):
            if not is_number(value):
                raise InvalidScoreError(
                    f"Scorer '{scorer}' gave atom {atom} of group '{group.id}' the score {value!r}; expected a finite number."
                )
        checked[group.id] = tuple(map(float, values))
    return checked


def _list(names: list[str]) -> str:
    return listed((f"'{name}'" for name in names), _LISTED)
