"""The Fisher scorer: its contract, and closed forms on a network whose gradients are known."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from proxyprune_fisher import FisherScorer, fisher_batch, samples_of
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError, ScoringError
from proxyprune.testing import check_scorer

Pair = namedtuple("Pair", ["x", "y"])


class Chain(nn.Module):
    """y = v . (W x), so dL/dW and dL/dv are known for L = mean(y)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def chain() -> tuple[nn.Module, pp.ModelGraph, list[Tensor]]:
    torch.manual_seed(0)
    model = Chain().double()
    return model, pp.trace(model, torch.zeros(1, 3, dtype=torch.float64)), [torch.randn(5, 3, dtype=torch.float64) for _ in range(2)]


def mean_output(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()


def expected(model: nn.Module, gradients_of: list[Tensor]) -> Tensor:
    """Half the mean of the squared w * g, summed over the slices of each hidden channel."""
    w, v = model.first.weight.detach(), model.second.weight.detach()[0]
    total = torch.zeros(4, dtype=torch.float64)
    for x in gradients_of:  # x: mean input that the gradient belongs to
        total += ((w * v[:, None] * x) ** 2).sum(1) + (v * (w @ x)) ** 2
    return total / (2 * len(gradients_of))


@pytest.mark.parametrize("name", ["fisher", "fisher_batch"])
def test_the_contract_holds(name):
    """The registered scorers keep every promise of the contract."""
    check_scorer(name)


def test_per_sample_is_the_mean_of_squares():
    """Every sample's gradient is squared by itself."""
    model, graph, batches = chain()
    ranking = pp.score(graph, FisherScorer(), model=model, batches=batches, loss_fn=mean_output)
    found = torch.tensor(next(iter(ranking.channel_scores.values())), dtype=torch.float64)
    assert torch.allclose(found, expected(model, [x for batch in batches for x in batch]), rtol=1e-4)


def test_per_batch_is_the_square_of_means():
    """Every batch's mean gradient is squared: another number, and a smaller one in sum."""
    model, graph, batches = chain()
    by_batch = pp.score(graph, fisher_batch(), model=model, batches=batches, loss_fn=mean_output)
    found = torch.tensor(next(iter(by_batch.channel_scores.values())), dtype=torch.float64)
    assert torch.allclose(found, expected(model, [batch.mean(0) for batch in batches]), rtol=1e-4)
    by_sample = pp.score(graph, FisherScorer(), model=model, batches=batches, loss_fn=mean_output)
    assert found.sum() < sum(next(iter(by_sample.channel_scores.values())))


def test_samples_are_taken_evenly():
    """With a limit, samples come from all batches, and the note says how many."""
    model, graph, batches = chain()
    ranking = pp.score(graph, FisherScorer(max_samples=3), model=model, batches=batches, loss_fn=mean_output)
    assert "3 samples" in ranking.notes[0]
    found = torch.tensor(next(iter(ranking.channel_scores.values())), dtype=torch.float64)
    samples = [x for batch in batches for x in batch]
    assert torch.allclose(found, expected(model, [samples[0], samples[4], samples[9]]), rtol=1e-4)


@dataclass(frozen=True)
class Both:
    x: Tensor
    extra: dict[str, Tensor]


def test_batches_of_any_shape_are_split():
    """Tensors in tuples, named tuples, dicts and dataclasses keep their containers."""
    x, y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    assert samples_of(Pair(x, y))[2].x.tolist() == [[4.0, 5.0]]
    assert samples_of((x, [y]))[1][1][0].tolist() == [1]
    assert samples_of({"x": x, "flag": True})[0]["flag"] is True
    assert samples_of(Both(x, {"y": y}))[2].extra["y"].tolist() == [2]


@pytest.mark.parametrize("batch", [(torch.zeros(3, 2), torch.zeros(4)), (torch.zeros(()),), "text", (torch.zeros(2), torch.tensor(1.0))])
def test_a_batch_that_cannot_be_split_is_refused(batch):
    """The message leads to the scorer that needs no split."""
    with pytest.raises(InputError, match="fisher_batch"):
        samples_of(batch)


@pytest.mark.parametrize("options", [{"per": "epoch"}, {"max_samples": 0}])
def test_options_are_checked(options):
    """Unknown options are refused when the scorer is made."""
    with pytest.raises(InputError, match="Expected"):
        FisherScorer(**options)


def test_a_loss_that_needs_several_samples_is_referred_to_fisher_batch():
    """Batch norm in training mode fails on one sample; the error names fisher_batch, which works, and whose own errors do not."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    graph = pp.trace(model, torch.randn(2, 3))
    batches = [torch.randn(5, 3)]
    with pytest.raises(ScoringError, match=r"more than 1 value per channel.*use 'fisher_batch'"):
        pp.score(graph, FisherScorer(), model=model, batches=batches, loss_fn=mean_output)
    assert pp.score(graph, fisher_batch(), model=model, batches=batches, loss_fn=mean_output).channel_scores
    with pytest.raises(ScoringError) as caught:
        pp.score(graph, fisher_batch(), model=model, batches=[torch.full((5, 3), torch.nan)], loss_fn=mean_output)
    assert "fisher_batch'," not in str(caught.value)
