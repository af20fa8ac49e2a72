"""Synaptic flow: its contract, closed forms, conservation, and networks with norms and attention."""

from __future__ import annotations

import pytest
import torch
from proxyprune_synflow import SynFlowScorer
from proxyprune_synflow.flow import _flows
from torch import Tensor, nn
from torch.nn import functional

import proxyprune as pp
from proxyprune.errors import MissingNeedError, ScoringError
from proxyprune.testing import check_scorer


def test_the_contract_holds():
    """The registered scorer keeps every promise of the contract."""
    check_scorer("synflow")


def test_the_flow_through_a_chain_in_numbers():
    """A hidden channel carries the product of the absolute weights on its paths, once in each of its two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    graph = pp.trace(model, torch.zeros(1, 3))
    ranking = pp.score(graph, "synflow", model=model, example_inputs=torch.zeros(1, 3))
    first, second = model[0].weight.detach().double().abs(), model[2].weight.detach().double().abs()
    paths = first.sum(1) * second.sum(0)
    found = torch.tensor(next(iter(ranking.channel_scores.values())), dtype=torch.float64)
    assert torch.allclose(found, 2.0 * paths / paths.sum(), rtol=1e-4)


class Normed(nn.Module):
    """A residual network with every kind of norm, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.layer_norm = nn.LayerNorm(8)
        self.rms_norm = nn.RMSNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(functional.silu(norm(x)))
        tokens = self.layer_norm(x.flatten(2).transpose(1, 2))
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + functional.scaled_dot_product_attention(query, key, value)
        return self.head(self.rms_norm(tokens).mean(1))


def test_flow_is_conserved_through_norms_and_attention():
    """All flow passes the stem and the head: both totals are equal, which normalising would break."""
    torch.manual_seed(0)
    flows = _flows(Normed(), torch.zeros(1, 3, 8, 8), 0)
    assert float(flows["stem.weight"].sum()) == pytest.approx(float(flows["head.weight"].sum()), rel=1e-9)
    assert float(flows["qkv.weight"][:16].sum()) == 0.0  # queries and keys
    assert float(flows["qkv.weight"][16:].sum()) > 0.0
    assert all(float(flow.min()) >= 0.0 for flow in flows.values())


def test_a_deep_network_does_not_overflow():
    """A hundred wide layers give finite scores."""
    model = nn.Sequential(*(layer for _ in range(100) for layer in (nn.Linear(64, 64), nn.ReLU())))
    graph = pp.trace(model, torch.zeros(1, 64), probe=False)
    ranking = pp.score(graph, "synflow", model=model, example_inputs=torch.zeros(1, 64))
    assert len(set(ranking.scores.values())) == 1  # a chain: every layer carries everything


def test_values_of_the_inputs_do_not_matter():
    """Only shapes are read; integers such as timesteps and labels stay what they are."""
    model = Normed()
    graph = pp.trace(model, torch.zeros(1, 3, 8, 8))
    one, other = (pp.score(graph, "synflow", model=model, example_inputs=x) for x in (torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8)))
    assert one.to_dict() == other.to_dict()


def test_without_example_inputs_it_says_what_is_missing():
    """It runs the network, so it needs something to run it on."""
    model = nn.Linear(2, 2)
    with pytest.raises(MissingNeedError, match="example inputs"):
        pp.score(pp.trace(model, torch.zeros(1, 2)), SynFlowScorer(), model=model)


class Stubborn(nn.Module):
    """A forward that insists on single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.weight.dtype != torch.float32:
            raise TypeError("single precision only")
        return self.last(self.layer(x).relu())


def test_a_forward_that_it_cannot_follow_is_an_error():
    """The message has the reason and another scorer."""
    model = Stubborn()
    with pytest.raises(ScoringError, match=r"single precision only.*magnitude"):
        pp.score(pp.trace(model, torch.zeros(1, 2)), "synflow", model=model, example_inputs=torch.zeros(1, 2))


def test_an_unet_and_a_transformer_of_diffusers_are_followed():
    """Timestep embeddings, skip concatenations and adaptive norms: every block has a score, and they differ."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=2, sample_size=8, patch_size=4, num_embeds_ada_norm=4
    )
    image, step = torch.zeros(1, 1, 8, 8), torch.tensor([3])
    for model, inputs in ((unet, (image, step)), (dit, (image, step, torch.tensor([1])))):
        graph = pp.trace(model, inputs, probe=False)
        ranking = pp.score(graph, "synflow", model=model, example_inputs=inputs)
        assert len(set(ranking.scores.values())) > len(graph.blocks) // 2
