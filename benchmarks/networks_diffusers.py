"""The denoisers and autoencoders of diffusers, in small configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from candidates import Candidate
from torch import nn

_LATENTS = (1, 4, 16, 16)
_VIDEO = (1, 4, 4, 16, 16)
_TEXT = (1, 7, 32)
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


@dataclass(frozen=True)
class Recipe:
    """A class of diffusers with a small configuration.

    Attributes:
        config: Arguments of the class.
        inputs: Named inputs: a shape for random values, a list for integers, and a tensor for itself.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    class_name: str = ""


_TIME = [7]
_NOISY = {"sample": _LATENTS, "timestep": _TIME}
_CONDITIONED = _NOISY | {"encoder_hidden_states": _TEXT}
_UNET = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
_CODEC = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
_CODEC_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
_TOKENS = {"hidden_states": _LATENTS, "timestep": _TIME, "encoder_hidden_states": _TEXT}
_ROTARY = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(7, 3)}

RECIPES: dict[str, Recipe] = {
    "UNet1DModel": Recipe(
        {
            "block_out_channels": (32, 64),
            "in_channels": 4,
            "out_channels": 4,
            "extra_in_channels": 64,
            "down_block_types": ("DownBlock1DNoSkip", "AttnDownBlock1D"),
            "up_block_types": ("AttnUpBlock1D", "UpBlock1DNoSkip"),
        },
        {"sample": (1, 4, 32), "timestep": _TIME},
    ),
    "UNet2DModel": Recipe(
        _UNET
        | {
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        _NOISY,
    ),
    "UNet2DConditionModel": Recipe(_UNET | _CROSS, _CONDITIONED),
    "UNet2DConditionModel (SDXL)": Recipe(
        _UNET
        | _CROSS
        | {
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        _CONDITIONED | {"added_cond_kwargs": {"text_embeds": (1, 32), "time_ids": (1, 6)}},
        "UNet2DConditionModel",
    ),
    "UNet3DConditionModel": Recipe(
        _UNET
        | {
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
        },
        _CONDITIONED | {"sample": _VIDEO},
    ),
    "UNetMotionModel": Recipe(
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "motion_num_attention_heads": 2,
            "num_attention_heads": 2,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "cross_attention_dim": 32,
        },
        _CONDITIONED | {"sample": _VIDEO},
    ),
    "UNetSpatioTemporalConditionModel": Recipe(
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "num_attention_heads": (2, 4),
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96,
            "in_channels": 4,
        },
        {"sample": (1, 2, 4, 16, 16), "timestep": _TIME, "encoder_hidden_states": (1, 1, 32), "added_time_ids": (1, 3)},
    ),
    "UVit2DModel": Recipe(
        {
            "hidden_size": 32,
            "cond_embed_dim": 32,
            "micro_cond_encode_dim": 8,
            "micro_cond_embed_dim": 40,
            "encoder_hidden_size": 32,
            "vocab_size": 64,
            "codebook_size": 60,
            "in_channels": 32,
            "block_out_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "block_num_heads": 2,
            "sample_size": 16,
        },
        {
            "input_ids": torch.zeros(1, 16, 16, dtype=torch.long),
            "encoder_hidden_states": _TEXT,
            "pooled_text_emb": (1, 32),
            "micro_conds": (1, 5),
        },
    ),
    "ControlNetModel": Recipe(
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "conditioning_embedding_out_channels": (16, 32),
        },
        _CONDITIONED | {"controlnet_cond": (1, 3, 32, 32)},
    ),
    "DiTTransformer2DModel": Recipe(
        _HEADS
        | {"in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 16, "norm_num_groups": 8, "num_embeds_ada_norm": 1000},
        {"hidden_states": _LATENTS, "timestep": _TIME, "class_labels": [3]},
    ),
    "PixArtTransformer2DModel": Recipe(
        _HEADS
        | {"num_layers": 2, "cross_attention_dim": 32, "caption_channels": 32, "sample_size": 16, "use_additional_conditions": False},
        _TOKENS | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "HunyuanDiT2DModel": Recipe(
        _HEADS
        | {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "cross_attention_dim_t5": 32,
            "pooled_projection_dim": 32,
            "text_len": 7,
            "text_len_t5": 7,
            "activation_fn": "gelu-approximate",
            "mlp_ratio": 2.0,
        },
        _TOKENS
        | {
            "timestep": (1,),
            "text_embedding_mask": torch.ones(1, 7),
            "encoder_hidden_states_t5": _TEXT,
            "text_embedding_mask_t5": torch.ones(1, 7),
            "image_meta_size": (1, 6),
            "style": [0],
            "image_rotary_emb": (torch.ones(64, 16), torch.zeros(64, 16)),
        },
    ),
    "SD3Transformer2DModel": Recipe(
        _HEADS
        | {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        _TOKENS | {"pooled_projections": (1, 32)},
    ),
    "AuraFlowTransformer2DModel": Recipe(
        _HEADS
        | {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        _TOKENS,
    ),
    "FluxTransformer2DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        {"hidden_states": (1, 16, 4), "encoder_hidden_states": _TEXT, "pooled_projections": (1, 32), "timestep": (1,)} | _ROTARY,
    ),
    "ChromaTransformer2DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        {"hidden_states": (1, 16, 4), "encoder_hidden_states": _TEXT, "timestep": (1,)} | _ROTARY,
    ),
    "Flux2Transformer2DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": 32,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        {
            "hidden_states": (1, 16, 4),
            "encoder_hidden_states": _TEXT,
            "timestep": (1,),
            "guidance": (1,),
            "img_ids": torch.zeros(16, 4),
            "txt_ids": torch.zeros(7, 4),
        },
    ),
    "QwenImageTransformer2DModel": Recipe(
        _HEADS | {"in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8)},
        {
            "hidden_states": (1, 16, 16),
            "encoder_hidden_states": _TEXT,
            "encoder_hidden_states_mask": torch.ones(1, 7),
            "timestep": (1,),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "CogView3PlusTransformer2DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 32,
            "time_embed_dim": 32,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 16,
        },
        _TOKENS | {"original_size": (1, 2), "target_size": (1, 2), "crop_coords": (1, 2)},
    ),
    "CogView4Transformer2DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 32,
            "time_embed_dim": 32,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 16,
            "rope_axes_dim": (16, 16),
        },
        _TOKENS | {"original_size": (1, 2), "target_size": (1, 2), "crop_coords": (1, 2)},
    ),
    "SanaTransformer2DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "sample_size": 16,
        },
        _TOKENS,
    ),
    "Lumina2Transformer2DModel": Recipe(
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 48,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 8, 4),
            "axes_lens": (128, 128, 128),
            "cap_feat_dim": 32,
        },
        _TOKENS | {"timestep": (1,), "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool)},
    ),
    "WanTransformer3DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 32,
            "freq_dim": 32,
            "ffn_dim": 64,
            "num_layers": 2,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
        },
        _TOKENS | {"hidden_states": (1, 4, 2, 16, 16)},
    ),
    "CogVideoXTransformer3DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 32,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 7,
        },
        _TOKENS | {"hidden_states": (1, 2, 4, 8, 8)},
    ),
    "LTXVideoTransformer3DModel": Recipe(
        _HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32, "num_layers": 2},
        {
            "hidden_states": (1, 32, 8),
            "encoder_hidden_states": _TEXT,
            "timestep": _TIME,
            "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "HunyuanVideoTransformer3DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "text_embed_dim": 32,
            "pooled_projection_dim": 32,
            "rope_axes_dim": (4, 4, 8),
        },
        _TOKENS
        | {
            "hidden_states": (1, 4, 2, 16, 16),
            "encoder_attention_mask": torch.ones(1, 7),
            "pooled_projections": (1, 32),
            "guidance": (1,),
        },
    ),
    "MochiTransformer3DModel": Recipe(
        _HEADS
        | {
            "num_layers": 2,
            "pooled_projection_dim": 32,
            "in_channels": 4,
            "text_embed_dim": 32,
            "time_embed_dim": 32,
            "max_sequence_length": 7,
        },
        _TOKENS | {"hidden_states": (1, 4, 2, 16, 16), "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool)},
    ),
    "LatteTransformer3DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 1,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "sample_size": 8,
            "patch_size": 2,
            "video_length": 2,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
        },
        _TOKENS | {"hidden_states": (1, 4, 2, 8, 8)},
    ),
    "AllegroTransformer3DModel": Recipe(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "cross_attention_dim": 48,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 2,
            "caption_channels": 32,
            "attention_head_dim": 24,
        },
        _TOKENS
        | {
            "hidden_states": (1, 4, 2, 8, 8),
            "attention_mask": torch.ones(1, 2, 8, 8),
            "encoder_attention_mask": torch.ones(1, 7),
            "image_rotary_emb": None,
        },
    ),
    "StableAudioDiTModel": Recipe(
        _HEADS
        | {
            "sample_size": 32,
            "in_channels": 4,
            "num_layers": 2,
            "num_key_value_attention_heads": 2,
            "out_channels": 4,
            "cross_attention_dim": 32,
            "time_proj_dim": 16,
            "global_states_input_dim": 32,
            "cross_attention_input_dim": 32,
        },
        {
            "hidden_states": (1, 4, 32),
            "timestep": _TIME,
            "encoder_hidden_states": _TEXT,
            "global_hidden_states": (1, 1, 32),
            "rotary_embedding": (torch.ones(33, 8), torch.zeros(33, 8)),
        },
    ),
    "PriorTransformer": Recipe(
        _HEADS | {"num_layers": 2, "embedding_dim": 32, "num_embeddings": 7, "additional_embeddings": 4},
        {"hidden_states": (1, 32), "timestep": _TIME, "proj_embedding": (1, 32), "encoder_hidden_states": _TEXT},
    ),
    "StableCascadeUNet": Recipe(
        {
            "in_channels": 4,
            "out_channels": 4,
            "conditioning_dim": 32,
            "block_out_channels": (32, 64),
            "num_attention_heads": (0, 4),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "down_blocks_repeat_mappers": (1, 1),
            "up_blocks_repeat_mappers": (1, 1),
            "block_types_per_layer": (
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            "clip_text_pooled_in_channels": 32,
            "switch_level": (False,),
            "kernel_size": 3,
            "timestep_ratio_embedding_dim": 16,
        },
        {"sample": _LATENTS, "timestep_ratio": (1,), "clip_text_pooled": (1, 1, 32)},
    ),
    "AutoencoderKL": Recipe(_CODEC | _CODEC_BLOCKS | {"latent_channels": 4}, {"sample": (1, 3, 32, 32)}),
    "AsymmetricAutoencoderKL": Recipe(
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": (16, 32),
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": (16, 32),
            "norm_num_groups": 8,
        },
        {"sample": (1, 3, 32, 32), "mask": (1, 1, 32, 32)},
    ),
    "AutoencoderTiny": Recipe(
        {
            "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        {"sample": (1, 3, 32, 32)},
    ),
    "AutoencoderDC": Recipe(
        {
            "latent_channels": 4,
            "attention_head_dim": 8,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (16, 32),
            "decoder_block_out_channels": (16, 32),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "downsample_block_type": "Conv",
            "upsample_block_type": "interpolate",
        },
        {"sample": (1, 3, 32, 32)},
    ),
    "VQModel": Recipe(_CODEC | _CODEC_BLOCKS | {"latent_channels": 3, "num_vq_embeddings": 16}, {"sample": (1, 3, 32, 32)}),
    "AutoencoderKLTemporalDecoder": Recipe(
        {"block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": ("DownEncoderBlock2D",) * 2},
        {"sample": (1, 3, 16, 16), "num_frames": 1},
    ),
    "AutoencoderKLCogVideoX": Recipe(
        {
            "down_block_types": ("CogVideoXDownBlock3D",) * 2,
            "up_block_types": ("CogVideoXUpBlock3D",) * 2,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 4,
            "temporal_compression_ratio": 2,
        },
        {"sample": (1, 3, 5, 16, 16)},
    ),
    "AutoencoderKLWan": Recipe(
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]},
        {"sample": (1, 3, 5, 16, 16)},
    ),
    "AutoencoderKLLTXVideo": Recipe(
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
        },
        {"sample": (1, 3, 9, 16, 16)},
    ),
    "AutoencoderOobleck": Recipe(
        {
            "encoder_hidden_size": 12,
            "decoder_channels": 12,
            "decoder_input_channels": 6,
            "audio_channels": 2,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
        },
        {"sample": (1, 2, 64)},
    ),
    "T2IAdapter": Recipe({"channels": (16, 32), "num_res_blocks": 1, "downscale_factor": 4}, {"x": (1, 3, 32, 32)}),
}
"""Name shown -> recipe; the name is that of the class, unless the recipe says another."""


def candidates() -> Iterator[Candidate]:
    """Yield one network for each recipe."""
    for name, recipe in RECIPES.items():
        make = partial(_make, recipe.class_name or name, recipe.config)
        yield Candidate(
            "diffusers", name, make, lambda model, recipe=recipe: {name: _value(given) for name, given in recipe.inputs.items()}
        )


def _make(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    import diffusers

    return getattr(diffusers, class_name)(**config)


def _value(given: Any) -> Any:
    """Draw what stands for random values, and leave the rest."""
    if isinstance(given, dict):
        return {name: _value(inner) for name, inner in given.items()}
    if isinstance(given, list) and all(isinstance(item, int) for item in given):
        return torch.tensor(given)
    if isinstance(given, tuple) and all(isinstance(item, int) for item in given):
        return torch.randn(given)
    return given.clone() if isinstance(given, torch.Tensor) else given
