"""Block influence and Wanda: their contracts, and closed forms."""

from __future__ import annotations

import pytest
import torch
from proxyprune_activation import BlockInfluenceScorer, WandaScorer
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.testing import check_scorer


class Turn(nn.Module):
    """x + angle * (x rotated by a right angle): turns every position's vector by arctan(angle)."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(angle * torch.tensor([[0.0, -1.0], [1.0, 0.0]]).reshape(2, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)


class Turns(nn.Module):
    """Two turns, a small one and a right angle's half, and a resampling block."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = Turn(0.1), Turn(1.0)
        self.down = nn.Conv2d(2, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.large(self.small(x)))


@pytest.mark.parametrize("name", ["block_influence", "wanda"])
def test_the_contract_holds(name):
    """The registered scorers keep every promise of the contract."""
    check_scorer(name)


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def test_influence_is_one_minus_the_cosine():
    """A turn by a known angle has a known influence; a block that changes the shape is unknown and named."""
    model = Turns().eval()
    graph = pp.trace(model, torch.zeros(1, 2, 4, 4))
    assert {"small", "large", "down"} <= set(graph.block_by_id)
    batches = [torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    ranking = pp.score(graph, BlockInfluenceScorer(), model=model, batches=batches, loss_fn=mean_square)
    one_minus_cosine = [1.0 - 1.0 / (1.0 + angle**2) ** 0.5 for angle in (0.1, 1.0)]
    # half_saturation: v / (v + median), and the median of two is their mean
    half = sum(one_minus_cosine) / 2
    assert ranking.scores["small"] == pytest.approx(one_minus_cosine[0] / (one_minus_cosine[0] + half), abs=1e-4)
    assert ranking.scores["large"] == pytest.approx(one_minus_cosine[1] / (one_minus_cosine[1] + half), abs=1e-4)
    assert ranking.scores["down"] == 0.5
    assert any("down" in note for note in ranking.notes)
    assert not ranking.channel_scores


class Layers(nn.Module):
    """A grouped convolution, a transposed one and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.grouped(x).relu()).mean((2, 3)))


def test_wanda_is_weight_times_input_size():
    """Channel scores equal |w| * rms(x), summed over the slices that leave, for all kinds of layers."""
    torch.manual_seed(0)
    model = Layers().eval()
    graph = pp.trace(model, torch.zeros(1, 4, 4, 4))
    batches = [torch.randn(5, 4, 4, 4) for _ in range(2)]
    ranking = pp.score(graph, WandaScorer(), model=model, batches=batches, loss_fn=mean_square)
    with torch.no_grad():
        x = torch.cat(batches)
        hidden = model.grouped(x).relu()
        pooled = model.up(hidden).mean((2, 3))
        sizes = {"grouped": x, "up": hidden, "head": pooled[:, :, None, None]}
        rms = {name: value.double().square().mean((0, 2, 3)).sqrt() for name, value in sizes.items()}
        grouped = model.grouped.weight.double().abs() * rms["grouped"].reshape(2, 1, 2).repeat(1, 4, 1).reshape(8, 2, 1, 1)
        up = model.up.weight.double().abs() * rms["up"].reshape(-1, 1, 1, 1)
        head = model.head.weight.double().abs() * rms["head"]
    by_width = {len(scores): torch.tensor(scores, dtype=torch.float64) for scores in ranking.channel_scores.values()}
    assert torch.allclose(by_width[6], up.sum((0, 2, 3)) + head.sum(0), rtol=1e-4)
    pairs = (grouped.sum((1, 2, 3)) + up.sum((1, 2, 3))).reshape(2, 4).sum(0)  # one channel of each convolution group leaves at a time
    assert torch.allclose(by_width[4], pairs, rtol=1e-4)


def test_a_dead_input_makes_its_weights_worthless():
    """A channel that is always zero counts nothing, however large the weights that read it."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, -1.0
        model[2].weight[:, 2] = 100.0
    graph = pp.trace(model, torch.zeros(1, 4))
    ranking = pp.score(graph, "wanda", model=model, batches=[torch.randn(8, 4)], loss_fn=mean_square)
    assert next(iter(ranking.channel_scores.values()))[2] == 0.0
