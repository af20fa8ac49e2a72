"""Factors that a forward computes from a width follow it; numbers that are written down, or change otherwise, do not pass for them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from masking import assert_close, zero_dropped
from torch import Tensor, nn

import proxyprune as pp


class RootNorm(nn.Module):
    """The RMSNorm of many diffusion networks: unit length over channels, times the root of their number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(1, width, 1, 1) + 0.5)
        self.counted: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.gain * (self.counted or x.shape[1]) ** 0.5


class Stream(nn.Module):
    """A residual stream with such norms."""

    def __init__(self, scale=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), RootNorm(16)
        self.up, self.down = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)
        self.head = nn.Conv2d(16, 3, 1)
        self.scale = scale or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        return self.head(self.scale(x))


X = torch.randn(1, 3, 8, 8)


def test_a_root_of_a_width_follows_it():
    """The stream is cut, and the pruned network is the masked one whose norm counts the channels that are left."""
    model = Stream().eval()
    result = pp.prune(model, X, 0.5)
    assert {group.id for group in pp.trace(model, X).prunable} == {"stem.weight:0", "up.weight:0"}
    kept = len(result.plan.kept["stem.weight:0"])
    assert kept < 16
    masked, small = copy.deepcopy(model).double(), copy.deepcopy(result.model).double()
    zero_dropped(masked, result.graph, result.plan.kept)
    masked.norm.counted = kept
    assert_close([masked(X.double())], [small(X.double())], "masked and pruned outputs")


@pytest.mark.parametrize("power", [-0.5, -1.0, 0.25, 2.0])
def test_other_powers_of_a_width_follow_it(power):
    """Inverse, square and fourth root of a width are factors that follow, whatever constant they are multiplied with."""
    model = Stream(lambda x: x * (3.0 * float(x.shape[1]) ** power)).eval()
    assert {group.id for group in pp.trace(model, X).prunable} == {"stem.weight:0", "up.weight:0"}
    assert "stem.weight:0" not in pp.prune(model, X, 0.5).report.pinned


@pytest.mark.parametrize(
    "scale",
    [
        lambda x: x * (1.0 + 0.001 * x.shape[1]),
        lambda x: x * (4.0 if x.shape[1] == 16 else 1.0),
        lambda x: x + float(x.shape[1]) ** 0.5,
    ],
    ids=["affine", "branch", "added"],
)
def test_what_changes_otherwise_pins_the_width(scale):
    """A number that is no power of the width, and one that is added, is still a difference that pins what it depends on."""
    graph = pp.trace(Stream(scale).eval(), X)
    assert "stem.weight:0" not in {group.id for group in graph.prunable}


def test_a_written_factor_stays():
    """The root of the original width, kept as a number, is the same at both widths and stays as it was written."""
    model = Stream(lambda x: x * 16**0.5).eval()
    result = pp.prune(model, X, 0.5)
    assert "stem.weight:0" in result.plan.kept
