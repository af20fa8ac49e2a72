"""From options to a network, its trace and its ranking: what every command starts with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxyprune.cli.console import Output
from proxyprune.cli.options import ModelOptions

if TYPE_CHECKING:
    from torch import nn

    from proxyprune.graph import ModelGraph
    from proxyprune.modelfile import ExampleInputs, ModelFile
    from proxyprune.ranking import Ranking
    from proxyprune.scoring.base import Scorer


@dataclass(frozen=True)
class Built:
    """A user's network, built and not yet traced."""

    source: ModelOptions
    file: ModelFile
    model: nn.Module = field(repr=False)
    inputs: ExampleInputs = field(repr=False)

    def trace(self, out: Output) -> ModelGraph:
        """Read the network's structure."""
        from proxyprune.read import trace

        with out.stage(f"Tracing {type(self.model).__name__}"):
            return trace(self.model, self.inputs, norm_groups=self.source.norm_groups, conv_groups=self.source.conv_groups)

    def needed_by(self, scorer: Scorer) -> dict[str, Any]:
        """Batches and loss, as keyword arguments; batches are made only for a scorer that asks for them."""
        from proxyprune.scoring.base import NEEDS

        wanted = {argument for need in scorer.needs for argument in NEEDS[need]}
        batches = self.file.calibration_batches() if "batches" in wanted else None
        return {"batches": batches, "loss_fn": self.file.loss_fn}

    def measured_with(self) -> dict[str, Any]:
        """Batches to learn from, batches to judge by, and the losses, as keyword arguments of `search` and `compare`."""
        return {
            "batches": self.file.calibration_batches(),
            "held_out": self.file.validation_batches(),
            "loss_fn": self.file.loss_fn,
            "training_loss_fn": self.file.training_loss_fn,
        }

    def rank(self, graph: ModelGraph, scorer: Scorer, out: Output) -> Ranking:
        """Score the blocks."""
        from proxyprune.scoring.request import score

        needed = self.needed_by(scorer)
        with out.stage(f"Scoring {len(graph.blocks)} blocks with {scorer.name}"):
            return score(graph, scorer, model=self.model, example_inputs=self.inputs, seed=self.source.seed, **needed)


def build(source: ModelOptions, out: Output) -> Built:
    """Read the model file, build the model and load its weights."""
    from proxyprune.modelfile import load_model_file

    with out.stage(f"Building {source.model}"):
        file = load_model_file(source.model, seed=source.seed)
        model = file.build_model(source.weights, fake_weights=source.fake_weights)
        return Built(source, file, model, file.example_inputs())


def scorer_named(name: str) -> Scorer:
    """Look a scorer up before anything slow happens, so that a misspelt name is told at once."""
    from proxyprune.scoring.registry import find

    return find(name, {})
