"""Networks and plans drawn by hypothesis."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from masking import randomise
from torch import Tensor, nn
from zoo import (
    C2f,
    DenseLayer,
    EinsumAttention,
    Fire,
    FusedQkvAttention,
    GatedMlp,
    InterleavedQkvAttention,
    ModuleAttention,
    PreNormLayer,
    ResidualBlock,
    RotaryGroupedAttention,
    ShuffleUnit,
    SpatialLinearAttention,
    SqueezeExcite,
    TimmStyleAttention,
    ViewGroupNorm,
    classifier,
    conv_bn,
    mlp,
)

import proxyprune as pp

SIZE = 8
"""Height and width of the images."""


@dataclass(frozen=True)
class Gene:
    """One stage of a random network.

    Attributes:
        kind: Key in `IMAGE_STAGES`, `TOKEN_STAGES` or `HEADS`.
        width: Channels that the stage produces, where it is free to choose.
        choice: Picks between the variants of the stage.
    """

    kind: str
    width: int
    choice: int


class ConcatInput(nn.Module):
    """Concatenates its input and what a body makes of it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class GatedConv(nn.Module):
    """One half of a convolution's channels gates the other."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, 2 * outer, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class ChannelsLastNorm(nn.Module):
    """LayerNorm over the channels of an image, by permuting there and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ImageAttention(nn.Module):
    """A token mixer over the pixels, with a residual connection and GroupNorm, as in a diffusion U-Net."""

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.mixer(tokens).transpose(1, 2).reshape(x.shape)


class DownUp(nn.Module):
    """A small U: halve the resolution, come back, concatenate with what was there."""

    def __init__(self, width: int, inner: int, *, transposed: bool) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, inner, 3, 2, 1)
        self.up = nn.ConvTranspose2d(inner, inner, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.norm = nn.GroupNorm(4, width + inner)
        self.fuse = nn.Conv2d(width + inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(F.silu(self.norm(torch.cat([x, self.up(F.silu(self.down(x)))], dim=1))))


class ToTokens(nn.Module):
    """[batch, channels, height, width] -> [batch, positions, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class MeanHead(nn.Module):
    """Mean over tokens, then a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=1))


Stage = tuple[nn.Module, int]
"""A stage and the channels that it produces."""


def _norm(width: int, gene: Gene) -> Stage:
    norms = (
        lambda: nn.BatchNorm2d(width),
        lambda: nn.GroupNorm(4, width),
        lambda: nn.GroupNorm(2, width, affine=False),
        lambda: nn.InstanceNorm2d(width, affine=True),
        lambda: ViewGroupNorm(4, width),
        lambda: ChannelsLastNorm(width),
    )
    return norms[gene.choice % len(norms)](), width


def _activation(width: int, gene: Gene) -> Stage:
    activations = (nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.PReLU(width), nn.Softplus(), nn.Sigmoid())
    return activations[gene.choice % len(activations)], width


def _conv(width: int, gene: Gene) -> Stage:
    kernel = (1, 3, 5)[gene.choice % 3]
    return nn.Conv2d(width, gene.width, kernel, padding=kernel // 2, bias=gene.choice % 2 == 0), gene.width


def _grouped(width: int, gene: Gene) -> Stage:
    return nn.Conv2d(width, gene.width, 3, padding=1, groups=(2, 4)[gene.choice % 2]), gene.width


def _depthwise(width: int, gene: Gene) -> Stage:
    outer = width * (1 + gene.choice % 2) if width <= 24 else width
    return nn.Conv2d(width, outer, 3, padding=1, groups=width), outer


def _residual(width: int, gene: Gene) -> Stage:
    first = conv_bn(width, gene.width) if gene.choice % 2 else nn.Sequential(nn.GroupNorm(4, width), nn.Conv2d(width, gene.width, 1))
    outer = width if gene.choice % 3 else gene.width
    shortcut = None if outer == width else nn.Conv2d(width, outer, 1)
    return ResidualBlock(nn.Sequential(first, nn.SiLU(), nn.Conv2d(gene.width, outer, 3, padding=1)), shortcut), outer


def _concat(width: int, gene: Gene) -> Stage:
    stages = (
        lambda: (ConcatInput(nn.Conv2d(width, gene.width, 3, padding=1)), width + gene.width),
        lambda: (DenseLayer(width, 8), width + 8),
        lambda: (Fire(width, 8, gene.width // 2), gene.width // 2 * 2),
        lambda: (C2f(width, gene.width, 8, 1, chunk=gene.choice % 2 == 0), gene.width),
    )
    return stages[gene.choice % 4]()


def _gate(width: int, gene: Gene) -> Stage:
    if gene.choice % 2:
        return nn.Sequential(SqueezeExcite(width, 6), nn.SiLU()), width
    return GatedConv(width, gene.width), gene.width


def _mixer(width: int, choice: int) -> nn.Module:
    mixers = (
        lambda: FusedQkvAttention(width, 4),
        lambda: TimmStyleAttention(width, 4),
        lambda: InterleavedQkvAttention(width, 2),
        lambda: EinsumAttention(width, 3, 6),
        lambda: RotaryGroupedAttention(width, 4, 2, 4),
        lambda: ModuleAttention(width, 4),
    )
    return mixers[choice % len(mixers)]()


def _attention(width: int, gene: Gene) -> Stage:
    if gene.choice % 5 == 0:
        return ResidualBlock(SpatialLinearAttention(width, 2, 6)), width
    return ImageAttention(width, _mixer(width, (0, 1, 3, 5)[gene.choice % 4])), width  # rotary tables and masks are for short sequences


def _resample(width: int, gene: Gene) -> Stage:
    stages = (
        lambda: (DownUp(width, gene.width, transposed=False), width),
        lambda: (DownUp(width, gene.width, transposed=True), width),
        lambda: (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, gene.width, 1), nn.Upsample(scale_factor=2)), gene.width),
        lambda: (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, 4 * gene.width, 1), nn.PixelShuffle(2)), gene.width),
    )
    return stages[gene.choice % 4]()


def _shuffle(width: int, gene: Gene) -> Stage:
    return ShuffleUnit(width), width


def _transformer(width: int, gene: Gene) -> Stage:
    feedforward = mlp(width, gene.width) if gene.choice % 2 else GatedMlp(width, gene.width, functional=gene.choice % 3 == 0)
    norm = nn.LayerNorm if gene.choice % 5 else nn.RMSNorm
    return PreNormLayer(width, _mixer(width, gene.choice), feedforward, norm), width


IMAGE_STAGES = {
    "conv": _conv,
    "grouped": _grouped,
    "depthwise": _depthwise,
    "norm": _norm,
    "activation": _activation,
    "residual": _residual,
    "concat": _concat,
    "gate": _gate,
    "attention": _attention,
    "resample": _resample,
    "shuffle": _shuffle,
}


WIDTHS = (8, 12, 16, 24)  # each is a multiple of 4, which heads, groups and halves need


IMAGE_GENES = st.builds(Gene, st.sampled_from(sorted(IMAGE_STAGES)), st.sampled_from(WIDTHS), st.integers(0, 29))


TOKEN_GENES = st.builds(Gene, st.just("transformer"), st.sampled_from(WIDTHS), st.integers(0, 29))


HEADS = ("image", "pooled", "flattened")


@dataclass(frozen=True)
class Design:
    """A random network as a value that hypothesis can shrink and print."""

    stem: int
    image: tuple[Gene, ...]
    tokens: tuple[Gene, ...]
    head: str
    seed: int

    def build(self) -> nn.Module:
        """Return the network, its weights drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            stages: list[nn.Module] = [nn.Conv2d(3, self.stem, 3, padding=1)]
            width = self.stem
            for gene in self.image:
                stage, width = IMAGE_STAGES[gene.kind](width, gene)
                stages.append(stage)
            stages += self._tail(width)
            return randomise(nn.Sequential(*stages).eval(), self.seed)

    def _tail(self, width: int) -> list[nn.Module]:
        if self.tokens:
            layers = [_transformer(width, gene)[0] for gene in self.tokens]
            return [nn.AdaptiveAvgPool2d(4), ToTokens(), *layers, nn.LayerNorm(width), MeanHead(width)]
        if self.head == "image":
            return [nn.Conv2d(width, 3, 1)]
        if self.head == "pooled":
            return [classifier(width, 5)]
        return [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * (SIZE // 2) ** 2, 5)]


DESIGNS = st.builds(
    Design,
    stem=st.sampled_from(WIDTHS),
    image=st.lists(IMAGE_GENES, min_size=1, max_size=5).map(tuple),
    tokens=st.one_of(st.just(()), st.lists(TOKEN_GENES, min_size=1, max_size=2).map(tuple)),
    head=st.sampled_from(HEADS),
    seed=st.integers(0, 99),
)


def random_plan(graph: Any, draw: random.Random) -> Any:
    """Return a plan that cuts each prunable group, at least one of them, by a random number of steps and at random atoms."""
    kept: dict[str, tuple[int, ...]] = {}
    widths: dict[str, tuple[int, int]] = {}
    certain = draw.choice(graph.prunable).id
    for group in graph.prunable:
        most = (group.atoms - group.floor) // group.step
        leaving = group.step * draw.randint(min(1, most) if group.id == certain else 0, most)
        if leaving:
            kept[group.id] = _random_atoms(group, group.atoms - leaving, draw)
            widths[group.id] = (group.width, len(kept[group.id]) * group.atom_channels)
    atoms = [len(kept.get(group.id, range(group.atoms))) for group in graph.prunable]
    macs, params = (int(price(np.array(atoms, np.int64))) for price in (graph.cost.macs, graph.cost.params))
    return pp.PrunePlan(
        fingerprint=graph.fingerprint,
        mode="width",
        metric="macs",
        target=macs,
        base_macs=graph.macs,
        target_macs=macs,
        macs=macs,
        base_params=graph.params,
        target_params=graph.params,
        params=params,
        kept=kept,
        widths=widths,
    )


def _random_atoms(group: Any, count: int, draw: random.Random) -> tuple[int, ...]:
    """`count` atoms, the same number from every bin."""
    bins = group.bins or (0,) * group.atoms
    names = sorted(set(bins))
    each, odd = divmod(count, len(names))
    assert odd == 0, f"{count} atoms of group '{group.id}' do not spread over {len(names)} bins: its step does not fit its bins"
    chosen = [draw.sample([atom for atom in range(group.atoms) if bins[atom] == name], each) for name in names]
    return tuple(sorted(atom for atoms in chosen for atom in atoms))
