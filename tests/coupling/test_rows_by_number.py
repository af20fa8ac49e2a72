"""Rows and entries that are written by number, triangular solves and distances: rules without products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from masking import assert_equals_masking
from torch import Tensor, nn
from zoo import measured_macs

import proxyprune as pp

ORDER = torch.tensor([3, 0, 4, 1, 2])
ENTRIES = torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3], [1, 2]])


class Network(nn.Module):
    """One hidden layer; what happens to it is given."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Linear(8, 16), nn.Linear(16, 4), middle

    def forward(self, x: Tensor) -> Tensor:
        """Apply the middle between two layers."""
        return self.last(self.middle(self.first(x)))


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "scatter": lambda x: torch.zeros_like(x).scatter(0, ORDER[:, None].expand_as(x), x),
    "scatter_add": lambda x: x.scatter_add(0, ORDER[:, None].expand_as(x), x),
    "scatter_reduce": lambda x: torch.zeros_like(x).scatter_reduce(0, ORDER[:, None].expand_as(x), x, "sum"),
    "index_add": lambda x: x.index_add(0, ORDER, x),
    "index_copy": lambda x: torch.zeros_like(x).index_copy(0, ORDER, x),
    "index_fill": lambda x: x.index_fill(0, ORDER[:2], 0.0),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(torch.eye(5) * 2, x, upper=False),
    "whole slice": lambda x: _written_slice(x),
}


def _written_slice(x: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    result[ORDER] = x
    return result


@pytest.mark.parametrize("name", WRITES)
def test_rows_are_written_and_channels_are_cut(name: str) -> None:
    """The op has a rule and costs nothing; channels go through it, and cutting them equals masking."""
    model, inputs = Network(WRITES[name]).eval(), (torch.randn(5, 8),)
    result = pp.prune(model, inputs, 0.6)
    assert not result.graph.unsupported_ops
    assert not result.graph.uncosted_ops
    assert [cut.parameter for cut in result.surgery.cuts] == ["first.weight", "first.bias", "last.weight"]
    assert measured_macs(result.model, inputs) == result.plan.macs
    assert_equals_masking(model, result.model, result.graph, result.plan, inputs)


def test_a_dimension_that_is_written_by_number_stays() -> None:
    """A mask over the entries of a router is made by scatter: these entries are numbered, so none of them leaves."""
    model = Network(lambda x: x * torch.zeros_like(x).scatter(1, ENTRIES, 1.0)).eval()
    graph = pp.trace(model, (torch.randn(5, 8),))
    assert not graph.uncosted_ops
    assert graph.prunable == ()


class Codebook(nn.Module):
    """Distances to a table of codes."""

    def __init__(self, *, relu: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.codes, self.relu = nn.Linear(8, 16), nn.Parameter(torch.randn(5, 16)), relu

    def forward(self, x: Tensor) -> Tensor:
        """Return the distance of each row to each code."""
        hidden = self.first(x)
        return torch.cdist(hidden.relu() if self.relu else hidden.sigmoid(), self.codes)


def test_distances_shrink_with_zero_features_only() -> None:
    """A feature that is zero on both sides adds nothing to a distance; one that is not stays."""
    inputs = (torch.randn(6, 8),)
    model = Codebook(relu=True).eval()
    result = pp.prune(model, inputs, 0.6)
    assert {cut.parameter for cut in result.surgery.cuts} == {"first.weight", "first.bias", "codes"}
    assert_equals_masking(model, result.model, result.graph, result.plan, inputs)
    assert pp.trace(Codebook(relu=False).eval(), inputs).prunable == ()
