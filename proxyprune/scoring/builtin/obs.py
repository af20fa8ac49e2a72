"""Optimal brain surgeon: the error that is left when a channel leaves and the others are refitted to make up for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.coupling.groups import ChannelGroup, Member
from proxyprune.errors import InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import ScoringContext, model_given
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.block_influence import REMOVAL_NOTE, BlockInfluence
from proxyprune.scoring.tools.elimination import FloatArray, Readers, elimination_costs
from proxyprune.scoring.tools.forward_passes import ForwardPasses
from proxyprune.scoring.tools.input_moments import InputMoments, WatchedLayer, bytes_of, input_moments, usable
from proxyprune.scoring.tools.layer_views import view_of
from proxyprune.scoring.tools.scale import significant

LARGEST_FEATURES = 1280
"""Convolutions with more features (input channels of a group times taps) are seen by input channel."""

BUFFER_BYTES = 512 * 2**20
"""Memory for sums; layers that do not fit together are watched in further passes over the batches."""

_STEP = 1e-5
"""Relative distance of two scores at least, so that rounding to six digits keeps the order of the removal."""


@dataclass(frozen=True)
class ObsScorer:
    """Error of the layers that read a channel, after the other channels were refitted to make up for it.

    For every layer that reads a channel group, the second moments H of its inputs are summed over the calibration batches. A set P of
    inputs that leaves costs tr(W_P ([H^-1]_PP)^-1 W_P^T) after a refit of the others, relative to the energy of the layer's output, with
    the share that the residual block around the layer adds to the stream. Atoms are taken out one by one, the cheapest first, and each gets
    what its removal adds: redundant channels are cheap until the last of them. Costs of all groups have one unit and add up, so channels
    are weighed across the network. It needs no labels and no gradients. A group that no watched layer reads gets the share of each channel
    in the energy of the outputs that make it.

    Which whole blocks leave is decided by their influence, measured in the same passes; a block's score is its influence too.

    It misleads where the refit is not made: use it with compensation. It says nothing about what the loss does with a channel, and layers
    whose weights are used without calling the module are not seen.

    Args:
        damping: Ridge on the second moments, relative to their mean diagonal. Larger values trust correlations less.
        blocks: Count errors inside a residual block with the block's share in the stream.

    Source:
        Hassibi and Stork 1993 (optimal brain surgeon), for layers as in Frantar and Alistarh 2022, arXiv:2208.11580, and for structures as
        in Kurtic et al. 2023, arXiv:2302.04089 (ZipLM). Deviations: relative errors, so that one order holds for the whole network.

    Raises:
        InputError: If the damping is not above 0.
    """

    damping: float = 1e-2
    blocks: bool = True
    name: str = field(default="obs", init=False)
    needs: frozenset[str] = field(default=frozenset({"batches"}), init=False)

    def __post_init__(self) -> None:
        if not self.damping > 0.0:
            raise InputError(f"Expected damping above 0, found {self.damping!r}.")

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Run the batches, once for each part of the layers that fits the memory, and remove the atoms of every group on paper."""
        model = model_given(self, context)
        passes = ForwardPasses(self.name, model, context)
        layers = usable(_candidates(graph, model), passes.first)
        influence = BlockInfluence(graph, model)
        with influence.measured():
            passes.all()
        shares = {block.id: influence.changes[block.id] for block in graph.blocks if block.removable} if self.blocks else {}
        readers: dict[str, list[Readers]] = {}
        made: dict[str, FloatArray] = {}
        for wave in _waves(layers):
            moments = input_moments(wave, passes.all)
            for layer in wave:
                seen = _Seen(layer, moments[layer.name], _share_around(layer.name, shares))
                for group, member in _members(graph, layer, layer.view.input_dim):
                    readers.setdefault(group.id, []).extend(seen.readers(member, self.damping))
                for group, member in _members(graph, layer, 1 - layer.view.input_dim) if layer.view.exact else ():
                    made[group.id] = made.get(group.id, np.zeros(group.atoms)) + seen.output_energy(member)
        costs = {group: elimination_costs(found, graph.by_id[group].atoms) for group, found in readers.items()}
        costs |= {group: values for group, values in made.items() if group not in costs}
        return Ranking(
            scores=influence.scores,
            scorer=self.name,
            channel_scores={group: _distinct(values) for group, values in costs.items()},
            comparable_channels=True,
            removal_scores=influence.scores,
            seed=context.seed,
            notes=(f"Error after a refit, over {passes.count} calibration batches and {len(layers)} layers; no labels.", REMOVAL_NOTE),
        )


@dataclass(frozen=True)
class _Seen:
    """A watched layer with the moments of its inputs."""

    layer: WatchedLayer
    moments: InputMoments
    scale: float

    def readers(self, member: Member, damping: float) -> Iterator[Readers]:
        """Yield one reader for each group of the layer, in the unit of the score.

        The groups of a plain convolution share the positions along its weight; those of a transposed one follow each other there.
        """
        matrix, second = self.layer.matrix, self._second()
        energy = float(((matrix @ self.moments.gram) * matrix).sum())
        positions = self._features(member)
        found = []
        for own, gram, raw in zip(matrix, second, self.moments.gram, strict=True):
            size = float(raw.diagonal().mean())
            unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            if energy <= 0.0 or size <= 0.0:  # nothing is read, so nothing is lost
                found.append((unit, torch.zeros_like(unit)))
                continue
            found.append((torch.linalg.inv(gram + damping * size * unit), own.T @ own * (self.scale / energy)))
        if self.layer.view.input_dim == 0 and len(found) > 1:
            found = [(_block_diagonal([inverse for inverse, _ in found]), _block_diagonal([product for _, product in found]))]
        for inverse, product in found:
            yield Readers(inverse, product, positions)

    def output_energy(self, member: Member) -> FloatArray:
        """Return the share of each atom in the energy of the output."""
        matrix = self.layer.matrix
        rows = ((matrix @ self._second()) * matrix).sum(dim=2).flatten().cpu().numpy()
        return np.asarray(self.scale * rows[member.positions].sum(axis=1) / max(float(rows.sum()), np.finfo(np.float64).tiny))

    def _second(self) -> Tensor:
        return self.moments.centred() if self.layer.has_bias else self.moments.gram

    def _features(self, member: Member) -> Tensor:
        """Features of each atom, [atoms, multiplicity]; an exact view of a convolution has one for each tap of a channel."""
        channels = self.layer.module.get_parameter("weight").shape[member.dim]
        own = self.layer.matrix.shape[2]  # of one group
        positions = torch.from_numpy(np.asarray(member.positions))
        if self.layer.view.exact and own > channels:
            taps = own // channels
            positions = (positions[:, :, None] * taps + torch.arange(taps)).flatten(1)
        return positions.to(self.moments.gram.device)


def _block_diagonal(matrices: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*matrices)  # type: ignore[no-untyped-call]
    return joined


def _candidates(graph: ModelGraph, model: nn.Module) -> Iterator[WatchedLayer]:
    """Yield the layers whose weight a prunable group cuts."""
    cut = {member.parameter for group in graph.prunable for member in group.members}
    for name, module in model.named_modules():
        view = view_of(module, LARGEST_FEATURES)
        weight = module._parameters.get("weight") if view is not None else None
        if view is not None and weight is not None and f"{name}.weight".lstrip(".") in cut:
            yield WatchedLayer(name, module, view)


def _waves(layers: Sequence[WatchedLayer]) -> Iterator[tuple[WatchedLayer, ...]]:
    """Yield layers whose sums fit the buffer together; one that does not fit comes alone."""
    wave: list[WatchedLayer] = []
    used = 0
    for layer in layers:
        needed = bytes_of(layer)
        if wave and used + needed > BUFFER_BYTES:
            yield tuple(wave)
            wave, used = [], 0
        wave.append(layer)
        used += needed
    if wave:
        yield tuple(wave)


def _members(graph: ModelGraph, layer: WatchedLayer, dim: int) -> Iterator[tuple[ChannelGroup, Member]]:
    """Yield the groups that cut a dimension of a layer's weight."""
    weight = f"{layer.name}.weight".lstrip(".")
    for group in graph.prunable:
        for member in group.members:
            if member.parameter == weight and member.dim == dim:
                yield group, member


def _share_around(layer: str, shares: Mapping[str, float | None]) -> float:
    """Share of the innermost residual block around a layer in its stream; 1 outside of such blocks."""
    owner = layer
    while owner:
        if (share := shares.get(owner)) is not None:
            return share
        owner = owner.rpartition(".")[0]
    return 1.0


def _distinct(values: FloatArray) -> tuple[float, ...]:
    """Round to six digits, and keep the order of values that are nearly equal."""
    order = np.argsort(values, kind="stable")
    found = np.zeros(len(values))
    last = 0.0
    for atom in order.tolist():
        last = max(float(values[atom]), last * (1.0 + _STEP))
        found[atom] = last
    return tuple(significant(value, 7) for value in found.tolist())
