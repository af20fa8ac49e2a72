"""The text graph and the networkx graph."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from diffusers import UNet2DConditionModel
from zoo import NETWORKS

import proxyprune as pp


@pytest.fixture(scope="module")
def unet() -> pp.ModelGraph:
    """Return a small U-Net with attention and skip connections."""
    network = NETWORKS["ddpm_unet"]
    return pp.trace(network.build(), network.inputs())


def test_every_cost_is_in_one_block(unet: pp.ModelGraph) -> None:
    """The blocks' MACs add up to the model's, and so do the parameters."""
    assert sum(block.macs for block in unet.blocks) == unet.macs
    assert sum(block.params for block in unet.blocks) == unet.params


def test_the_text_has_a_line_for_every_block(unet: pp.ModelGraph) -> None:
    """One line a block with its id, a legend, and the totals."""
    lines = unet.to_text().splitlines()
    for number, block in enumerate(unet.blocks, start=1):
        assert sum(line.startswith(f"{number} {block.id} {block.kind} ") for line in lines) == 1
    assert f"{unet.macs:,} MACs" in lines[0]
    assert any(line.startswith("# one block a line") for line in lines)


def test_a_u_net_has_skip_edges(unet: pp.ModelGraph) -> None:
    """Up blocks read what down blocks made, and the graph says so."""
    graph = unet.to_networkx()
    skips = [(a, b) for a, b, kind in graph.edges(data="kind") if kind == "skip" and a.startswith("down") and b.startswith("up")]
    assert skips
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph) == {"input", *(block.id for block in unet.blocks)}
    assert graph.nodes[unet.blocks[0].id]["macs"] == unet.blocks[0].macs


def test_kinds_are_told_apart(unet: pp.ModelGraph) -> None:
    """Residual blocks, attention, resamplers and the head are found in a U-Net."""
    kinds = {block.kind for block in unet.blocks}
    assert {"residual", "attention", "resample", "head"} <= kinds


def test_the_text_of_stable_diffusion_stays_readable() -> None:
    """The U-Net of Stable Diffusion 1.5 (860 M parameters, never allocated) fits in 160 lines of at most 200 characters."""
    with torch.device("meta"):
        model = UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8)
    inputs = {"sample": torch.empty(1, 4, 64, 64), "timestep": torch.empty(1), "encoder_hidden_states": torch.empty(1, 77, 768)}
    graph = pp.trace(model, inputs, probe=False)
    lines = graph.to_text().splitlines()
    assert graph.params == 859_520_964
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 200
