"""Small configurations of transformers' model types, derived from the default ones by the names of their fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 64
VOCABULARY = 128

_SMALL: dict[str, int] = {
    r"(.*_)?vocab_size(_.*)?|vocabulary_size": VOCABULARY,
    r"type_vocab_size": 2,
    r"(.*_)?image_size|input_size|img_size": 64,
    r"(.*_)?patch_size": 16,
    r".*(key_value|kv)_heads|num_kv_heads|multi_query_group_num|num_global_key_value_heads": 2,
    r"n_head(s)?|n_heads?|num_heads?|.*attention_heads|.*num_heads|.*_n_heads|.*num_attention_heads": 4,
    r"num_experts_per_tok(en)?|moe_k|.*top_k(_experts)?|moe_topk|moe_top_k|num_selected_experts": 2,
    r"(.*_)?(num|n)_(.*_)?experts|n_routed_experts|num_local_experts|moe_num_experts": 4,
    r"n_shared_experts|num_shared_experts": 1,
    r"n_group|topk_group|num_expert_groups|num_expert_group": 1,
    r"first_k_dense_replace": 1,
    r"rotary_dim": 8,
    r"window_size": 2,
    r"num_kv_shared_layers": 0,
    r"qk_head_dim": 32,
    r"q_lora_rank": 24,
    r"kv_lora_rank": 16,
    r".*head_dim|.*head_size|attention_key_size|d_kv|kv_channels": 16,
    r"moe_intermediate_size|.*expert_intermediate_size|expert_ffn_hidden_size|.*expert_hidden_size": 48,
    r".*intermediate_size.*|.*ffn_dim|d_ff|n_inner|.*ffn_hidden_size|.*mlp_dim|.*ffn_embed_dim|.*dim_feedforward|.*feedforward_dim": 96,
    r"(.*_)?(num|n)_(.*_)?(hidden_)?(layers|blocks)|n_layers?|.*_layers|num_layers?|.*_depth|depth|n_layer": 2,
    r"max_position_embeddings|n_positions|max_target_positions|max_sequence_length|max_seq_len(gth)?|n_ctx|seq_length": 256,
    r"max_source_positions": 32,
    r"num_mel_bins|feature_size|n_mels": 32,
    r"num_queries|num_query_tokens|num_latents|num_object_queries": 8,
    r"hidden_size.*|.*hidden_size|d_model|n_embd|.*embedding_size|dim|.*_dim|width|.*channels?|.*_width|d_embed": WIDTH,
}
"""Full name of a field -> the largest value that it keeps; the first pattern that fits counts."""

_KEPT = re.compile(
    r"num_channels|in_channels|num_input_channels|in_chans|input_channels|num_feat_extract_layers|num_encoder_blocks|stage_.*|stem_.*|conv_kernel.*|.*strides?.*|.*rotary_(?!dim).*|num_labels|head_dim_factor"
)
_WIDTHS = re.compile(
    r".*(hidden_sizes|embed_dims?|conv_dim|tdnn_dim|dims|channels|widths|out_features_dims|hidden_dims|key_dim|filter_sizes)"
)
_DEPTHS = re.compile(r".*(depths?|layers|blocks)")
_MIXTURE = 8
"""The most layers that are kept to have one of every layer type."""


def tiny_fields(config: Any) -> dict[str, Any]:
    """Return the fields in which a small configuration differs from the default one.

    Args:
        config: A default configuration of transformers.
    """
    fields = config.to_dict()
    changed = {}
    for name, value in fields.items():
        small = _small(name, value)
        if small is not None and small != value:
            changed[name] = small
    if any(fields.get(name) for name in ("out_indices", "backbone_out_indices")):
        changed.pop("num_hidden_layers", None)  # the indices are those of layers
    if fields.get("kv_lora_rank"):  # latent attention has as many heads of keys as of queries
        changed |= {name: 4 for name in ("num_attention_heads", "num_key_value_heads") if name in fields}
    changed |= _enough_layers(fields, changed)
    changed |= _special_tokens(fields)
    for name in getattr(config, "sub_configs", {}) or {}:
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            changed[name] = {"model_type": inner.model_type} | tiny_fields(inner)
    return changed


def _small(name: str, value: Any) -> Any:
    if _KEPT.fullmatch(name) or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return next((min(value, limit) for pattern, limit in _SMALL.items() if re.fullmatch(pattern, name)), None)
    if isinstance(value, Mapping):
        return _rope(value)
    if isinstance(value, Sequence) and value and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return _sequence(name, value)
    return None


def _sequence(name: str, values: Sequence[int]) -> Any:
    """Scale widths to start at 16, keep one layer of each stage, and one head in the first stage."""
    if re.fullmatch(r".*image_size|.*patch_size", name):
        return type(values)(min(value, 64 if "image" in name else 16) for value in values)
    if 3 in values and "channels" in name:  # colours
        return None
    smallest = max(min(values), 1)
    if _WIDTHS.fullmatch(name):
        return type(values)(max(1, value * 16 // smallest) for value in values)
    if _DEPTHS.fullmatch(name):
        return type(values)(min(value, 1) for value in values)
    if name.endswith("heads"):
        return type(values)(max(1, value // smallest) for value in values)
    return None


def _rope(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return rotary settings whose sections add up to half of a head of 16 channels."""
    if "mrope_section" not in value:
        return None
    return {**value, "mrope_section": [2, 3, 3]}


def _enough_layers(fields: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, int]:
    """Keep as many layers as it takes to have one of every type."""
    types = fields.get("layer_types")
    if not isinstance(types, Sequence) or not types or "num_hidden_layers" not in fields:
        return {}
    first = [list(types).index(kind) for kind in dict.fromkeys(types)]
    return {"num_hidden_layers": max(2, min(_MIXTURE, max(first) + 1))} if "num_hidden_layers" in changed else {}


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Move special tokens into the small vocabulary, from its end."""
    moved, free = {}, VOCABULARY - 1
    for name, value in fields.items():
        if not re.fullmatch(r".*token_(id|index)|.*_token_ids?", name):
            continue
        if isinstance(value, int) and value >= VOCABULARY:
            moved[name], free = free, free - 1
        elif isinstance(value, list) and any(isinstance(item, int) and item >= VOCABULARY for item in value):
            moved[name], free = [free], free - 1
    return moved
