"""A small residual network with data and a loss, for search and comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxyprune.testing import Network


class Residual(nn.Module):
    """x + conv(relu(norm(conv(x))))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, hidden, 3, padding=1)
        self.norm = nn.BatchNorm2d(hidden)
        self.down = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.norm(self.up(x)).relu())


class Net(nn.Module):
    """Four residual blocks of different widths: small, with thousands of plans."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(12, hidden) for hidden in (24, 16, 32, 20)))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def subject() -> Network:
    """Return the network with random weights, and data."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
    batches = [(torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 5, (8,), generator=generator)) for _ in range(3)]
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    return Network("net", model, torch.zeros(1, 3, 8, 8), batches, lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1]))
