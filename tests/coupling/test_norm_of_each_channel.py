"""GroupNorm with as many groups as channels, as wav2vec2 has it: every channel has its own statistics and can leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masking import assert_equals_masking, randomise
from torch import Tensor, nn

import proxyprune as pp


class Features(nn.Module):
    """A convolution, a norm of each channel, and a reader; `joined` normalises a concatenation."""

    def __init__(self, *, joined: bool) -> None:
        super().__init__()
        self.one, self.other = nn.Conv1d(4, 16, 3, padding=1), nn.Conv1d(4, 8, 3, padding=1)
        width = 24 if joined else 16
        self.norm, self.last = nn.GroupNorm(width, width), nn.Conv1d(width, 4, 1)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([self.one(x), self.other(x)], 1) if self.joined else self.one(x) + self.other(x).mean()
        return self.last(F.gelu(self.norm(hidden)))


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "concatenation"])
@pytest.mark.parametrize("norm_groups", ["balanced", "whole", "reduced"])
def test_single_channels_leave(joined, norm_groups):
    """The step is one channel under every option, the number of groups follows, and real statistics equal those of masking."""
    model, x = randomise(Features(joined=joined).eval()), torch.randn(1, 4, 20)
    graph = pp.trace(model, x, norm_groups=norm_groups)
    (group,) = (group for group in graph.prunable if group.id == "one.weight:0")
    assert group.unit == 1
    result = pp.prune(model, x, 0.6, norm_groups=norm_groups)
    assert "one.weight:0" in result.plan.kept
    assert result.model.norm.num_groups == result.model.norm.num_channels < model.norm.num_channels
    assert_equals_masking(model, result.model, result.graph, result.plan, (x,), hold=False)
