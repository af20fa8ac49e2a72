"""A buffer outside the state dict that the forward gives another size is no part of the saved network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import proxyprune as pp


class Positions(nn.Module):
    """Computes a table of positions for the length of its input, and keeps it."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions between two layers."""
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.eye(x.shape[1]).cumsum(0)
        return self.last(self.table @ self.first(x))


def test_a_network_that_ran_before_it_was_pruned_is_loaded(tmp_path: Path) -> None:
    """The factory's network has not run yet, so its table has another size; outputs are the same, bit by bit."""
    model, x = Positions().eval(), torch.randn(1, 5, 8)
    model(x)
    result = pp.prune(model, (x,), target=0.6)
    loaded = pp.load(pp.save(result, tmp_path / "pruned"), Positions)
    assert torch.equal(loaded.eval()(x), result.model(x))
