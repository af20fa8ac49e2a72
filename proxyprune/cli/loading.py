"""From options to a network, its trace and its ranking: what every command starts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from torch import nn

from proxyprune.api import trace
from proxyprune.cli.options.llm import SCORERS, LLMOptions
from proxyprune.cli.options.shared import ModelOptions
from proxyprune.cli.output.console import Output
from proxyprune.cli.output.llm_progress import Listener, preview_payload, preview_shown, preview_text
from proxyprune.compensation.calibration_pass import CalibrationData
from proxyprune.errors import InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import DataKeywords
from proxyprune.measuring.network_times import CostTable, with_times
from proxyprune.measuring.timing import Timing
from proxyprune.modelfile import ExampleInputs, ModelFile, load_model_file
from proxyprune.planning.request import PlanRequest
from proxyprune.proxy.scorer import LLMScorer
from proxyprune.pruning.advice import Advice
from proxyprune.pruning.asked_advice import asks_advice
from proxyprune.pruning.channels import AUTO, Ranked, Scorers, takes_channels
from proxyprune.scoring import Brief, ScoringContext
from proxyprune.scoring.contract import NEEDS, LossFunction, Scorer, shows_time
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import find
from proxyprune.scoring.run_scorer import score


class ScorerData(TypedDict):
    """The data that a scorer may need, as keyword arguments of `score` and `prune`."""

    batches: Sequence[Any] | None
    loss_fn: LossFunction | None


@dataclass(frozen=True)
class Built:
    """A user's network, built and not yet traced."""

    source: ModelOptions
    file: ModelFile
    model: nn.Module = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    also: tuple[Any, ...] = field(default=(), repr=False)

    def trace(self, out: Output) -> ModelGraph:
        """Read the network's structure."""
        with out.stage(f"Tracing {type(self.model).__name__}"):
            return trace(self.model, self.inputs, also=self.also, **self.source.trace_keywords)

    def timed(self, graph: ModelGraph, timing: Timing) -> ModelGraph:
        """Return the graph with predicted times; a bar shows the ops that are not in the cost table."""
        return with_times(graph, self.model, self.inputs, timing, table=CostTable(progress=True))

    def needed_by(self, scorer: Scorer) -> ScorerData:
        """Batches and loss, as keyword arguments; batches are made only for a scorer that uses them."""
        wanted = {argument for need in scorer.needs for argument in NEEDS[need]}
        helps = getattr(scorer, "data_helps", False) and self.file.loss_fn is not None and not self.source.fake_weights
        batches = self.file.calibration_batches() if "batches" in wanted or helps else None
        return {"batches": batches, "loss_fn": self.file.loss_fn}

    def measured_with(self) -> DataKeywords:
        """Batches to learn from, batches to judge by, and the losses, as keyword arguments of `search` and `compare`."""
        return {
            "batches": self.file.calibration_batches(),
            "held_out": self.file.validation_batches(),
            "loss_fn": self.file.loss_fn,
            "training_loss_fn": self.file.training_loss_fn,
        }

    def rank(self, graph: ModelGraph, judge: Judge, out: Output, brief: Brief | None = None) -> Ranking:
        """Score the blocks."""
        needed = self.needed_by(judge.scorer)
        with out.stage(f"Scoring {len(graph.blocks)} blocks with {judge.scorer.name}") as judge.listener.say:
            return score(graph, judge.scorer, model=self.model, example_inputs=self.inputs, seed=self.source.seed, brief=brief, **needed)

    def rank_for_plan(self, graph: ModelGraph, judge: Judge, request: PlanRequest) -> Ranked:
        """Score the blocks, and the channels where another scorer is to do that; calibration batches are made only if they are needed."""
        batches = self.needed_by(judge.scorer)["batches"]
        if batches is None and (judge.advice or asks_advice(judge.scorer) or takes_channels(judge.scorer, judge.channels, request)):
            batches = None if self.source.fake_weights else self.file.calibration_batches()
        data = CalibrationData(() if batches is None else tuple(batches), self.file.loss_fn, self.source.seed)
        return Scorers(judge.scorer, judge.channels, advice=judge.advice).rank(self.model, self.inputs, graph, request, data)

    def show_dry_run(self, judge: Judge, out: Output, timing: Timing, brief: Brief | None = None) -> None:
        """Print what the scorer would send and what that would cost."""
        graph = self.trace(out)
        if shows_time(judge.scorer):
            graph = self.timed(graph, timing)
        needed = self.needed_by(judge.scorer)
        batches = needed["batches"]
        context = ScoringContext(
            self.model, self.inputs, None if batches is None else tuple(batches), needed["loss_fn"], self.source.seed, brief or Brief()
        )
        if not isinstance(judge.scorer, LLMScorer):
            raise InputError(f"--dry-run shows the prompt for a language model; scorer '{judge.scorer.name}' uses none.")
        preview = judge.scorer.preview(graph, context)
        out.text(preview_text(preview))
        out.show(*preview_shown(preview))
        out.emit(preview_payload(preview))


def build(source: ModelOptions, out: Output) -> Built:
    """Read the model file, build the model and load its weights."""
    with out.stage(f"Building {source.model}"):
        file = load_model_file(source.model, seed=source.seed)
        model = file.build_model(source.weights, fake_weights=source.fake_weights)
        return Built(source, file, model, file.example_inputs(), file.also_inputs())


@dataclass(frozen=True)
class Judge:
    """A scorer, and the ear for what it reports.

    Attributes:
        scorer: Judges the blocks.
        listener: Hears the events of a scorer that asks a language model.
        dry_run: Show what would be asked instead of asking.
        channels: Scorer of the channels, where `scorer` scores blocks only; see `proxyprune.prune`.
        advice: Limits to measure.
    """

    scorer: Scorer
    listener: Listener = field(default_factory=Listener)
    dry_run: bool = False
    channels: str | None = AUTO
    advice: tuple[Advice, ...] = ()

    def notes(self, ranking: Ranking) -> tuple[str, ...]:
        """Return what the ranking says about how it was made, if a language model was to be asked."""
        return ranking.notes if self.scorer.name in SCORERS else ()


def scorer_named(name: str, llm: LLMOptions) -> Judge:
    """Look a scorer up before anything slow happens, so that a misspelt name is reported at once."""
    listener = Listener()
    options = llm.scorer_options(name)
    return Judge(find(name, options | {"observer": listener} if options else {}), listener, llm.dry_run)
