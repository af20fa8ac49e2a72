"""Score a network: with one scorer, or with one for blocks and another for channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from proxyprune.api import compensated, prune_ranked
from proxyprune.compensation.calibration_pass import CalibrationData
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.channel_choice import PriorChoice, check_choosable, choosable, resting_note
from proxyprune.measuring.held_out import Data
from proxyprune.planning.request import PlanRequest
from proxyprune.pruning.advice import Advice, AdviceTrials
from proxyprune.pruning.asked_advice import asked_advice, asks_advice
from proxyprune.scoring import Brief, Scorer, ScoringContext, score
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import find
from proxyprune.tracing.model_call import ExampleInputs
from proxyprune.tracing.record_values import has_values

AUTO, DEFAULT_CHANNELS = "auto", "taylor"
"""`channels` by default, and the scorer that it stands for with a language model."""


@dataclass(frozen=True)
class Ranked:
    """A ranking to plan with, and notes for the plan.

    Attributes:
        ranking: The ranking, with the channel scores of another scorer where that was asked for.
        request: What to ask of the plan: with the limits of the advice that was kept.
        plan_notes: Sentences on what the plan rests on.
    """

    ranking: Ranking
    request: PlanRequest
    plan_notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scorers:
    """The scorers of a plan.

    Attributes:
        blocks: The scorer, by name or as an object.
        channels: The scorer of the channels if `blocks` has no channel scores, by name or as an object; "auto" or None as in `prune`.
        compensate: Choose by the loss after a compensation alone, because the network will get one.
        brief: Further information for both, or None.
        advice: Limits to measure, in this order; see `Advice`.
    """

    blocks: str | Scorer
    channels: str | Scorer | None = AUTO
    compensate: bool = False
    brief: Brief | None = None
    advice: tuple[Advice, ...] = ()

    def rank(
        self, model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, request: PlanRequest, data: CalibrationData
    ) -> Ranked:
        """Score a network, combine block scores with the channel scores of the other scorer, and try the advice.

        Args:
            model: The network.
            example_inputs: What it was traced on.
            graph: Its trace.
            request: What is asked of the plan.
            data: Calibration batches, or none, and a loss.

        Raises:
            MissingNeedError: If there is too little data to choose a weight for another scorer that is named, or to measure advice.
            ProxyPruneError: From scoring, planning or applying.
        """
        scorer = find(self.blocks, {}) if isinstance(self.blocks, str) else self.blocks
        if self.advice or asks_advice(scorer):
            check_choosable("Advice is measured", data.batches, data.loss_fn)
        ranked = self._ranked(model, example_inputs, graph, request, data)
        if data.loss_fn is None or (ranked.ranking.unreliable is not None and not request.accept_unreliable):
            return ranked
        context = ScoringContext(model, example_inputs, data.batches, data.loss_fn, data.seed, request.brief(self.brief))
        asked = asked_advice(scorer, graph, context)
        if not self.advice and not asked.advice:
            return replace(ranked, plan_notes=(*ranked.plan_notes, *asked.notes))
        trials = AdviceTrials(
            lambda tried: self._built(model, example_inputs, graph, ranked.ranking, tried, data),
            Data((), data.batches[1::2], data.loss_fn),
            data.seed,
        )
        followed, notes = trials.followed(request, (*self.advice, *asked.advice))
        return Ranked(ranked.ranking, followed, (*ranked.plan_notes, *asked.notes, *notes))

    def _built(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        graph: ModelGraph,
        ranking: Ranking,
        request: PlanRequest,
        data: CalibrationData,
    ) -> Iterator[nn.Module]:
        """Yield the network that a plan gives, unless it will be refitted, and the refitted one.

        The loss right after a cut says little about a network whose normalisation the cut disturbs, so the refitted one always counts.
        """
        result = prune_ranked(model, example_inputs, graph, ranking, request)
        if not self.compensate:
            yield result.model
        yield compensated(result, model, data, None, lambda share, note: None).model

    def _ranked(
        self, model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, request: PlanRequest, data: CalibrationData
    ) -> Ranked:
        blocks_by: Scorer = find(self.blocks, {}) if isinstance(self.blocks, str) else self.blocks
        if self.channels is not None and self.channels != AUTO:
            named = self.channels if isinstance(self.channels, str) else self.channels.name
            purpose = f"channels='{named}' measures the weight of block scores on its channel scores"
            check_choosable(purpose, data.batches, data.loss_fn)

        def scored(by: Scorer) -> Ranking:
            return score(
                graph,
                by,
                model=model,
                batches=data.batches or None,
                loss_fn=data.loss_fn,
                seed=data.seed,
                example_inputs=example_inputs,
                brief=request.brief(self.brief),
            )

        blocks = scored(blocks_by)
        if not takes_channels(blocks_by, self.channels, request) or blocks.channel_scores:
            return Ranked(blocks, request)
        if blocks.unreliable is not None and not request.accept_unreliable:
            return Ranked(blocks, request)  # planning rejects it
        if data.loss_fn is None or not choosable(data.batches, data.loss_fn):
            return Ranked(blocks, request, (resting_note(blocks, weights=has_values(model)),))

        def built(ranking: Ranking) -> Iterator[nn.Module]:
            return self._built(model, example_inputs, graph, ranking, request, data)

        name = DEFAULT_CHANNELS if self.channels is None or self.channels == AUTO else self.channels
        choice = PriorChoice(graph, model, request, data.batches, data.loss_fn, data.seed, built)
        ranking = choice.choose(blocks, scored(find(name, {}) if isinstance(name, str) else name))
        return Ranked(ranking, request, ranking.notes[-1:])


def takes_channels(scorer: Scorer, channels: str | Scorer | None, request: PlanRequest) -> bool:
    """Return True if the channels of a scorer of blocks are to be scored by another scorer; `channels` as in `prune`."""
    if channels == AUTO:
        return "network" in getattr(scorer, "needs", ()) and request.mode == "width"
    return channels is not None
