"""Wanda: a weight matters as much as it is large and its input is large."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune import ChannelGroup, ModelGraph, ScoringContext
from proxyprune.scoring import (
    REMOVAL_NOTE,
    BlockInfluence,
    Calibration,
    Hook,
    Ranking,
    group_importance,
    half_saturation,
    parameters_by_block,
    parameters_of,
    significant,
)
from proxyprune_activation.watching import floats_of, run_watched

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WATCHED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


@dataclass(frozen=True)
class WandaScorer:
    """Size of a weight times the size of its input, |w| * ||x||, as the relative error of the layers that read a channel.

    ||x|| is the root mean square of an input channel over positions, samples and calibration batches. An atom gets, added up over the
    linear and convolution layers that read it, the sum of (w * ||x||)**2 over its weights, divided by the mean square of the layer's
    output: the relative error of that output without the atom, if inputs are uncorrelated. Inside a residual block this counts with the
    share of the block in the stream after it. All channels of the network so have one unit, and a head is not worth less for being
    large. A group that no layer reads is scored by the rows that make it.

    A block gets, averaged over the outputs of its layers, the root of the sum over inputs of (w * ||x||)**2: the size that its activations
    would have if inputs were uncorrelated. Which whole blocks leave is decided by their influence, measured in the same pass.

    It misleads where a large constant activation is cancelled by a bias or removed by the norm that follows, and says nothing about
    what the loss does with a channel. Layers whose weights are used without calling the module are not seen.

    Source:
        Sun et al. 2023, arXiv:2306.11695, eq. 1. Deviations: squares, added up over all weights that read a channel and relative to the
        layer's output, in the place of single weights compared within a row; convolutions; the block score.
    """

    name: str = field(default="wanda", init=False)
    needs: frozenset[str] = field(default=frozenset({"loss"}), init=False)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """One forward pass over the batches."""
        calibration = Calibration.of(self, context)
        layers = {name: module for name, module in calibration.model.named_modules(remove_duplicate=False) if isinstance(module, WATCHED)}
        meters = {id(module): _Meter() for module in layers.values()}
        unique = {id(module): module for module in layers.values()}
        influence = BlockInfluence(graph, calibration.model)
        with influence.measured():
            run_watched(calibration, [(module, meters[key].hook) for key, module in unique.items()])
        weights = parameters_of(calibration.model)
        products = {
            f"{name}.weight": _times_input(module, weights[f"{name}.weight"], norm)
            for name, module in layers.items()
            if (norm := meters[id(module)].root_mean_square) is not None and f"{name}.weight" in weights
        }
        shares = {block.id: influence.changes[block.id] for block in graph.blocks if block.removable}
        errors = {
            f"{name}.weight": products[f"{name}.weight"].square() * _share_around(name, shares) / meters[id(module)].output_power
            for name, module in layers.items()
            if f"{name}.weight" in products
        }
        readers = [found for group in graph.prunable if (found := _judged_by(group, layers, errors)) is not None]
        atoms = group_importance(errors, readers, "l1")
        inside = parameters_by_block((block.id for block in graph.blocks), products)
        rows = {name: _mean_row_norm(product) for name, product in products.items()}
        sizes = {block: sum(rows[name] for name in names) / len(names) if names else None for block, names in inside.items()}
        return Ranking(
            scores=half_saturation(sizes),
            scorer=self.name,
            channel_scores={group: tuple(significant(value) for value in values.tolist()) for group, values in atoms.items()},
            comparable_channels=True,
            removal_scores=influence.scores,
            seed=context.seed,
            notes=(f"Wanda over {len(calibration.batches)} calibration batches, {len(products)} layers.", REMOVAL_NOTE),
        )


class _Meter:
    """Mean square of every input channel of one layer, and of its output."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None
        self._positions = 0
        self._output_squares = 0.0
        self._outputs = 0

    @property
    def root_mean_square(self) -> Tensor | None:
        return None if self._squares is None else (self._squares / self._positions).sqrt()

    @property
    def output_power(self) -> float:
        """Mean over positions of the squared norm of the output's channels; the least positive number for an output of zeros."""
        return max(self._output_squares / max(self._outputs, 1), torch.finfo(torch.float64).tiny)

    @property
    def hook(self) -> Hook:
        def measure(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            value = next(floats_of((*args, *kwargs.values())), None)
            if value is None or not value.numel():
                return
            channels = -1 if isinstance(module, nn.Linear) else -module.weight.ndim + 1  # type: ignore[union-attr,operator]
            flat = value.detach().movedim(channels, -1).reshape(-1, value.shape[channels]).double()
            squares = flat.square().sum(dim=0)
            self._squares = squares if self._squares is None else self._squares + squares
            self._positions += flat.shape[0]
            self._output_squares += float(output.detach().double().square().sum())
            self._outputs += output.numel() // output.shape[channels]

        return measure


def _judged_by(group: ChannelGroup, layers: Mapping[str, nn.Module], errors: Mapping[str, Tensor]) -> ChannelGroup | None:
    """Return the group with the members alone that read it; with those that make it where none does; None where no layer was seen."""
    seen = [member for member in group.members if member.parameter in errors]
    reading = [member for member in seen if member.dim == _input_dim(layers[member.parameter.removesuffix(".weight")])]
    return dataclasses.replace(group, members=tuple(reading or seen)) if seen else None


def _input_dim(module: nn.Module) -> int:
    return 0 if isinstance(module, TRANSPOSED) else 1


def _share_around(layer: str, shares: Mapping[str, float | None]) -> float:
    """Share of the innermost residual block around a layer in its stream; 1 outside of such blocks."""
    owner = layer
    while owner:
        if (share := shares.get(owner)) is not None:
            return share
        owner = owner.rpartition(".")[0]
    return 1.0


def _times_input(module: nn.Module, weight: Tensor, norm: Tensor) -> Tensor:
    """|w| * ||x||, in the weight's shape, float64.

    A linear layer and a convolution have [out, in / groups, ...], a transposed convolution [in, out / groups, ...].
    """
    tail = [1] * (weight.ndim - 2)
    size = weight.detach().double().abs()
    if isinstance(module, TRANSPOSED):
        return size * norm.reshape(-1, 1, *tail)
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    per_group = norm.reshape(groups, 1, -1, *tail)
    return (size.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)


def _mean_row_norm(product: Tensor) -> float:
    return significant(float(torch.linalg.vector_norm(product.reshape(product.shape[0], -1), dim=1).mean()))
