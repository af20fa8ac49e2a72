"""From options to a traced model: the part that every command starts with."""

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


@dataclass(frozen=True)
class Loaded:
    """A user's network, built and traced."""

    file: ModelFile
    model: nn.Module = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    graph: ModelGraph = field(repr=False)


def load(source: ModelOptions, out: Output) -> Loaded:
    """Read the model file, build the model, load its weights and trace it."""
    import proxyprune as pp
    from proxyprune.modelfile import load_model_file

    with out.stage(f"Building {source.model}"):
        file = load_model_file(source.model, seed=source.seed)
        model = file.build_model(source.weights, fake_weights=source.fake_weights)
        inputs = file.example_inputs()
    with out.stage(f"Tracing {type(model).__name__}"):
        graph = pp.trace(model, inputs, norm_groups=source.norm_groups, conv_groups=source.conv_groups)
    return Loaded(file, model, inputs, graph)


def rank(loaded: Loaded, scorer: str, out: Output) -> Ranking:
    """Score the blocks; the file's batches are made only for a scorer that asks for them."""
    import proxyprune as pp
    from proxyprune.scorers.base import NEEDS
    from proxyprune.scorers.registry import find

    judge = find(scorer, {})
    wanted = {argument for need in judge.needs for argument in NEEDS[need]}
    given: dict[str, Any] = {"batches": loaded.file.calibration_batches()} if "batches" in wanted else {}
    with out.stage(f"Scoring {len(loaded.graph.blocks)} blocks with {judge.name}"):
        return pp.score(
            loaded.graph,
            judge,
            model=loaded.model,
            loss_fn=loaded.file.loss_fn,
            example_inputs=loaded.inputs,
            seed=loaded.file.seed,
            **given,
        )
