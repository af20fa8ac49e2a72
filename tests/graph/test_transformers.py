"""The text of transformers: kind, width, length and heads, on networks of diffusers and transformers with two layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import proxyprune as pp

CHANNELS, TOKENS = 48, 17


def dit() -> tuple[nn.Module, Any]:
    """16 tokens of 64 channels: a square number of both, so that one can pass for the other."""
    from diffusers import DiTTransformer2DModel

    sizes = {"in_channels": 1, "out_channels": 1, "num_layers": 2, "sample_size": 16, "patch_size": 4, "num_embeds_ada_norm": 10}
    return DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=16, **sizes), (
        torch.zeros(1, 1, 16, 16),
        torch.tensor([10]),
        torch.tensor([1]),
    )


def vit() -> tuple[nn.Module, Any]:
    import transformers

    sizes = {"hidden_size": CHANNELS, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=7)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.zeros(1, 3, 32, 32)}


def flux() -> tuple[nn.Module, Any]:
    from diffusers import FluxTransformer2DModel

    sizes = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    model = FluxTransformer2DModel(**sizes, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8])
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(8, 3)}
    text = {"encoder_hidden_states": torch.zeros(1, 8, 32), "pooled_projections": torch.zeros(1, 32)}
    return model, {"hidden_states": torch.zeros(1, 16, 4), "timestep": torch.tensor([1.0]), **text, **places}


def t5() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ids = {"input_ids": torch.zeros(1, 6, dtype=torch.long), "decoder_input_ids": torch.zeros(1, 5, dtype=torch.long)}
    return transformers.T5ForConditionalGeneration(config), {**ids, "use_cache": False}


def swin() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": torch.zeros(1, 3, 32, 32)}


def llama() -> tuple[nn.Module, Any]:
    import transformers

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=96, intermediate_size=64, num_hidden_layers=2, hidden_size=32, **heads)
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.zeros(1, 10, dtype=torch.long), "use_cache": False}


EXPECTED: dict[Callable[[], tuple[nn.Module, Any]], tuple[str, ...]] = {
    dit: (
        "pos_embed stem 1>64 @16",
        "transformer_blocks.0 transformer 64>64 @16 heads 4",
        "transformer_blocks.1 transformer 64>64 @16 heads 4",
        "proj_out_1 linear 64>128 @1",
        "proj_out_2 head 64>16 @16",
    ),
    vit: (
        "vit.embeddings stem 3>48 @17",
        "vit.layers.0 transformer 48>48 @17 heads 4",
        "vit.layers.1 transformer 48>48 @17 heads 4",
        "vit.layernorm norm 48>48 @17",
        "classifier head 48>7 @1",
    ),
    flux: (
        "x_embedder stem 4>32 @16",
        "time_text_embed feedforward 32>32 @1",
        "context_embedder linear 32>32 @8",
        "transformer_blocks.0 transformer 32>32 @16 heads 2",
        "single_transformer_blocks.0 transformer 32>32 @16 heads 2",
        "single_transformer_blocks.1 transformer 32>32 @16 heads 2",
        "norm_out linear 32>32 @16",
        "proj_out head 32>4 @16",
    ),
    t5: (
        "encoder.embed_tokens embedding ?>32 @6",
        "encoder.block.0.layer.0 attention 32>32 @6 heads 4",
        "encoder.block.0.layer.1 feedforward 32>32 @6",
        "encoder.block.1.layer.0 attention 32>32 @6 heads 4",
        "encoder.block.1.layer.1 feedforward 32>32 @6",
        "encoder.final_layer_norm norm 32>32 @6",
        "decoder.embed_tokens embedding ?>32 @5",
        "decoder.block.0.layer.0 attention 32>32 @5 heads 4",
        "decoder.block.0.layer.1 attention 32>32 @5 heads 4",
        "decoder.block.0.layer.2 feedforward 32>32 @5",
        "decoder.block.1.layer.0 attention 32>32 @5 heads 4",
        "decoder.block.1.layer.1 attention 32>32 @5 heads 4",
        "decoder.block.1.layer.2 feedforward 32>32 @5",
        "decoder.final_layer_norm norm 32>32 @5",
        "lm_head head 32>64 @5",
    ),
    swin: (
        "swin.embeddings stem 3>16 @256",
        "swin.encoder.layers.0.blocks.0 transformer 16>16 @256 heads 2",
        "swin.encoder.layers.0.blocks.1 transformer 16>16 @256 heads 2",
        "swin.encoder.layers.0.downsample resample 16>32 @64",
        "swin.encoder.layers.1.blocks.0 transformer 32>32 @64 heads 4",
        "swin.encoder.layers.1.blocks.1 transformer 32>32 @64 heads 4",
        "swin.layernorm norm 32>32 @64",
        "classifier head 32>5 @1",
    ),
    llama: (
        "model.embed_tokens embedding ?>32 @10",
        "model.layers.0 transformer 32>32 @10 heads 4",
        "model.layers.1 transformer 32>32 @10 heads 4",
        "model.norm norm 32>32 @10",
        "lm_head head 32>96 @10",
    ),
}


@pytest.mark.parametrize("build", EXPECTED, ids=lambda build: build.__name__)
def test_lines_of_a_transformer_have_kind_width_length_and_heads(build):
    """Channels are what the groups cut, tokens are the length, whatever stands first; fingerprints are those of the first release."""
    model, inputs = build()
    graph = pp.trace(model.eval(), inputs, probe=False)
    lines = [line for line in graph.to_text().splitlines() if line[0].isdigit()]
    assert tuple(re.split(r" [\d.]+% ", line)[0].split(maxsplit=1)[1] for line in lines) == EXPECTED[build]
    assert graph.fingerprint == replace(graph, blocks=graph.first_reading, first_reading=()).fingerprint
    assert [block.heads for block in graph.blocks] == [int((re.search(r"heads (\d+)", line) or [0, 0])[1]) for line in EXPECTED[build]]


def test_a_narrower_network_has_narrower_lines():
    """The width in a line is the number that a cut changes: after pruning, lengths and heads stay consistent with the new network."""
    model, inputs = vit()
    result = pp.prune(model.eval(), inputs, 0.5, "magnitude")
    before, after = (pp.trace(each, inputs, probe=False).block_by_id["vit.layers.0"] for each in (model, result.model))
    assert after.resolution == before.resolution == (TOKENS,)
    assert after.widths[0] == after.widths[1]
    assert after.widths[1] is not None
    assert before.widths[1] == CHANNELS > after.widths[1]
