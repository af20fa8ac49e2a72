"""thop's count, without a trace of thop on the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxyprune.measuring.thop_count import thop_macs


class Named(nn.Module):
    """A layer that takes its input by name, and stores a computed tensor that cannot be deep-copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.stored = self.layer[0].weight * 2

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        self.stored = self.layer(x) * scale
        return self.stored


class Failing(Named):
    """Raises half way."""

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        self.layer(x)
        raise RuntimeError("no")


def attributes(model: nn.Module) -> list[tuple[str, list[str], list[str], int, bool]]:
    return [
        (name, list(module._buffers), list(module.__dict__), len(module._forward_hooks), module.training)
        for name, module in model.named_modules()
    ]


def test_the_count_leaves_the_model_as_it_was():
    """A model with named arguments and a computed tensor is counted in place; buffers, hooks, training modes and values stay."""
    model = Named().train()
    before, stored, mean = attributes(model), model.stored, model.layer[1].running_mean.clone()
    macs = thop_macs(model, {"x": torch.randn(2, 4), "scale": torch.ones(1)})
    assert macs >= 2 * 4 * 8
    assert attributes(model) == before
    assert model.stored is stored
    assert torch.equal(model.layer[1].running_mean, mean)


def test_a_network_that_thop_cannot_count_has_no_count_and_no_remains():
    """Where the forward raises, the count is None and the model is as before."""
    model = Failing().eval()
    before = attributes(model)
    assert thop_macs(model, {"x": torch.randn(2, 4), "scale": torch.ones(1)}) is None
    assert attributes(model) == before
