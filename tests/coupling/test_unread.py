"""Positions that no call reads stay, because what reads them is not known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.coupling.unread import UNREAD


class Detector(nn.Module):
    """A table of positions longer than the input, and queries of which evaluation reads the first ones only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 16)
        self.positions = nn.Parameter(torch.randn(1, 32, 16))
        self.queries = nn.Embedding(20, 16)
        self.boxes = nn.Embedding(20, 3)
        self.hidden, self.last = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.positions[:, : x.shape[1]]
        count = 20 if self.training else 5
        queries = self.queries.weight[:count].expand(x.shape[0], -1, -1)
        return self.last(self.hidden(x.mean(1, keepdim=True) + queries).relu()) + self.boxes.weight[:count]


X = torch.randn(2, 12, 4)


def test_rows_beyond_a_slice_stay():
    """Longer inputs and training run after a cut for parameters, and the reason is in the report."""
    result = pp.prune(Detector().eval(), X, 0.6, metric="params", floors={"*": 1})
    assert result.model.positions.shape[1] == 32
    assert len(result.model.queries.weight) == len(result.model.boxes.weight) == 20
    assert result.model(torch.randn(2, 30, 4)).shape == (2, 5, 3)
    assert result.model.train()(X).shape == (2, 20, 3)
    assert result.report.pinned["positions:1@12"] == UNREAD


def test_a_second_call_that_reads_the_rest_decides():
    """With a call in training mode, the queries are read as wholes, and are what that call makes of them."""
    graph = pp.trace(Detector().eval(), X, also=[pp.TrainingCall(X)])
    assert not any(group.pinned == UNREAD for group in graph.groups if group.id.startswith(("queries", "boxes")))
    assert any(group.pinned == UNREAD for group in graph.groups if group.id.startswith("positions"))


class Optional(nn.Module):
    """A table that only some calls use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.positions, self.last = nn.Linear(4, 16), nn.Parameter(torch.randn(32, 16)), nn.Linear(16, 3)

    def forward(self, x: Tensor, use: bool = True) -> Tensor:
        x = self.first(x)
        return self.last(x + self.positions[: x.shape[1]] if use else x)


def test_a_second_call_without_the_table_frees_nothing():
    """A call that does not read the table at all says nothing about its rows."""
    result = pp.prune(Optional().eval(), X, 0.5, metric="params", also=[{"x": X, "use": False}])
    assert len(result.model.positions) == 32
    assert result.model(torch.randn(2, 30, 4)).shape == (2, 30, 3)


class Halves(nn.Module):
    """Evaluation uses the first outputs of a layer, training the others as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.both, self.last = nn.Linear(4, 16), nn.Linear(16, 24), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(self.first(x))
        found = self.last(both[..., :16])
        return found * both[..., 16:].exp().mean(-1, keepdim=True) if self.training else found


def test_outputs_of_a_layer_beyond_a_slice_stay():
    """The outputs that evaluation does not use are cut neither for MACs nor for parameters, so training runs and is as before."""
    result = pp.prune(Halves().eval(), X, 0.6)
    kept = next((cut.kept for cut in result.surgery.cuts if cut.parameter == "both.weight" and cut.dim == 0), range(24))
    assert set(range(16, 24)) <= set(kept)
    assert result.model.train()(X).shape == (2, 12, 3)
