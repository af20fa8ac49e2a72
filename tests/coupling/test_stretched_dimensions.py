"""Copies of one entry, along a dimension that takes any size, follow the width that they meet after being moved, padded and reshaped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masking import assert_equals_masking, randomise
from torch import Tensor, nn
from zoo import measured_macs

import proxyprune as pp


class Scan(nn.Module):
    """A state-space layer in chunks, as in Mamba-2: all heads read and write their states by the same two projections.

    `way` copies these for every head: by repeat_interleave, by repeat, or by expand.
    """

    def __init__(self, way: str, heads: int = 8, head_dim: int = 4, states: int = 6, chunk: int = 4) -> None:
        super().__init__()
        self.way, self.heads, self.head_dim, self.states, self.chunk = way, heads, head_dim, states, chunk
        self.norm = nn.LayerNorm(16)
        self.into = nn.Linear(16, heads * head_dim + 2 * states + heads, bias=False)
        self.decay = nn.Parameter(torch.zeros(heads))
        self.out = nn.Linear(heads * head_dim, 16, bias=False)

    def for_each_head(self, x: Tensor) -> Tensor:
        """Copy [batch, length, states] for every head."""
        x = x[:, :, None]
        if self.way == "repeat_interleave":
            x = x.repeat_interleave(self.heads, dim=2)
        else:
            x = x.repeat(1, 1, self.heads, 1) if self.way == "repeat" else x.expand(-1, -1, self.heads, -1)
        return self.in_chunks(x.float().contiguous())

    def in_chunks(self, x: Tensor) -> Tensor:
        """Pad the length to whole chunks: [batch, length, heads, ...] -> [batch, chunks, chunk, heads, ...]."""
        missing = -x.shape[1] % self.chunk
        padded = F.pad(x, (0, 0, 0, 0, 0, missing))
        return padded.reshape(x.shape[0], -1, self.chunk, *x.shape[2:])

    def forward(self, hidden: Tensor) -> Tensor:
        length = hidden.shape[1]
        sizes = [self.heads * self.head_dim, self.states, self.states, self.heads]
        x, write, read, step = self.into(self.norm(hidden)).split(sizes, dim=-1)
        x = x.view(*x.shape[:2], self.heads, self.head_dim)
        x = self.in_chunks(x * F.softplus(step + self.decay)[..., None])
        state = torch.einsum("bclhn,bclhp->bchpn", self.for_each_head(write), x)
        y = torch.einsum("bclhn,bchpn->bclhp", self.for_each_head(read), state).flatten(1, 2)[:, :length]
        return hidden + self.out(y.reshape(*y.shape[:2], self.heads * self.head_dim))


class Net(nn.Module):
    """Two such layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.layers, self.last = nn.Linear(5, 16), nn.Sequential(Scan(way), Scan(way)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.first(x)))


@pytest.mark.parametrize("way", ["repeat_interleave", "repeat", "expand"])
def test_heads_that_share_their_states_leave_as_wholes(way: str):
    """Heads of a state-space layer with one group are cut, pruning equals masking, and the MACs are exact."""
    model, tokens = randomise(Net(way)).eval(), (torch.randn(1, 6, 5),)
    result = pp.prune(model, tokens, 0.6, keep="*last*")
    heads = [layer.heads for layer in result.model.layers]
    assert min(heads) < 8
    assert [layer.head_dim for layer in result.model.layers] == [4, 4]
    assert [len(layer.decay) for layer in result.model.layers] == heads
    assert result.plan.macs == measured_macs(result.model, tokens)
    assert_equals_masking(model, result.model, result.graph, result.plan, tokens)
