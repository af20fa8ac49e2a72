"""Wanda: a weight matters as much as it is large and its input is large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune import ModelGraph, ScoringContext
from proxyprune.scoring import (
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
    """Size of a weight times the size of its input, |w| * ||x||, summed over the slices that leave with a channel.

    ||x|| is the root mean square of an input channel over positions, samples and calibration batches. An atom gets the sum over all
    coupled slices of linear and convolution layers. A block gets, averaged over the outputs of its layers, the root of the sum over
    inputs of (w * ||x||)**2: the size that its activations would have if inputs were uncorrelated.

    It misleads where a large constant activation is cancelled by a bias or removed by the norm that follows, and says nothing about
    what the loss does with a channel. Layers whose weights are used without calling the module are not seen.

    Source:
        Sun et al. 2023, arXiv:2306.11695, eq. 1. Deviations: structured sums in the place of single weights compared within a row;
        convolutions; the block score.
    """

    name: str = field(default="wanda", init=False)
    needs: frozenset[str] = field(default=frozenset({"loss"}), init=False)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """One forward pass over the batches."""
        calibration = Calibration.of(self, context)
        layers = {name: module for name, module in calibration.model.named_modules(remove_duplicate=False) if isinstance(module, WATCHED)}
        meters = {id(module): _Meter() for module in layers.values()}
        unique = {id(module): module for module in layers.values()}
        run_watched(calibration, [(module, meters[key].hook) for key, module in unique.items()])
        weights = parameters_of(calibration.model)
        products = {
            f"{name}.weight": _times_input(module, weights[f"{name}.weight"], norm)
            for name, module in layers.items()
            if (norm := meters[id(module)].root_mean_square) is not None and f"{name}.weight" in weights
        }
        atoms = group_importance(products, graph.prunable, "l1")
        inside = parameters_by_block((block.id for block in graph.blocks), products)
        rows = {name: _mean_row_norm(product) for name, product in products.items()}
        sizes = {block: sum(rows[name] for name in names) / len(names) if names else None for block, names in inside.items()}
        return Ranking(
            scores=half_saturation(sizes),
            scorer=self.name,
            channel_scores={group: tuple(significant(value) for value in values.tolist()) for group, values in atoms.items()},
            seed=context.seed,
            notes=(f"Wanda over {len(calibration.batches)} calibration batches, {len(products)} layers.",),
        )


class _Meter:
    """Mean square of every input channel of one layer."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None
        self._positions = 0

    @property
    def root_mean_square(self) -> Tensor | None:
        return None if self._squares is None else (self._squares / self._positions).sqrt()

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

        return measure


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
