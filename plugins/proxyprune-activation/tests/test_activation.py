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


def test_wanda_is_the_relative_error_of_the_readers():
    """Channel scores equal the sum of (w * rms(x))**2 over the weights that read a channel, relative to the reader's output."""
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
        power = {"up": model.up(hidden).double().square().sum(1).mean(), "head": model.head(pooled).double().square().sum(1).mean()}
        up = (model.up.weight.double() * rms["up"].reshape(-1, 1, 1, 1)).square() / power["up"]
        head = (model.head.weight.double() * rms["head"]).square() / power["head"]
    by_width = {len(scores): torch.tensor(scores, dtype=torch.float64) for scores in ranking.channel_scores.values()}
    assert torch.allclose(by_width[6], head.sum(0), rtol=1e-4)
    pairs = up.sum((1, 2, 3)).reshape(2, 4).sum(0)  # one channel of each convolution group leaves at a time
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


class Stream(nn.Module):
    """A residual branch that adds a share of the stream, behind a layer outside of it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.branch = Branch(size)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.branch(self.stem(x)))


class Branch(nn.Module):
    """x + size * down(relu(up(x)))."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.up, self.down, self.size = nn.Linear(8, 16), nn.Linear(16, 8), size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * self.down(self.up(x).relu())


def test_channels_of_a_residual_block_count_with_its_share_of_the_stream():
    """A branch that adds a hundredth as much has hidden channels worth about a ten-thousandth; in its own layer their shares are equal."""
    scores = {}
    for size in (1.0, 0.01):
        torch.manual_seed(0)
        model = Stream(size).eval()
        graph = pp.trace(model, torch.zeros(1, 4))
        assert graph.block_by_id["branch"].removable
        batches = [torch.randn(64, 4, generator=torch.Generator().manual_seed(1))]
        ranking = pp.score(graph, WandaScorer(), model=model, batches=batches, loss_fn=mean_square)
        assert ranking.comparable_channels
        scores[size] = torch.tensor(ranking.channel_scores["branch.up.weight:0"])
    ratio = scores[0.01] / scores[1.0]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0.0)
    assert 1e-5 < float(ratio.mean()) < 1e-3
