"""One tiny network of every model type that transformers' auto classes list."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from candidates import Candidate, Inputs
from tiny_configs import tiny_fields
from torch import nn

TASKS = (
    "CAUSAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "IMAGE_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "OBJECT_DETECTION",
    "DEPTH_ESTIMATION",
    "VIDEO_CLASSIFICATION",
    "SPEECH_SEQ_2_SEQ",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "UNIVERSAL_SEGMENTATION",
    "TEXT_ENCODING",
    "IMAGE_TEXT_TO_TEXT",
)
"""A model type is tried with the first of these that it has."""

_LARGEST = 60_000_000  # parameters; a configuration that is still larger was not made small

_ROPE_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}}
_VOCABULARY = {"vocab_size": 128}

_BACKBONE = {
    "model_type": "dinov2",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "reshape_hidden_states": False,
}

_RESNET = {
    "use_timm_backbone": False,
    "backbone": None,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
}

_SWIN = {
    "backbone_config": {
        "model_type": "swin",
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
        "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
}
_UNSCALED = {"width_coefficient": 0.5, "depth_coefficient": 0.5}
_EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}

_OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "bit": {"num_groups": 4},
    "depth_anything": {"backbone_config": _BACKBONE, "neck_hidden_sizes": [16, 32, 64, 64], "fusion_hidden_size": 64},
    "prompt_depth_anything": {"backbone_config": _BACKBONE, "neck_hidden_sizes": [16, 32, 64, 64], "fusion_hidden_size": 64},
    "zoedepth": {"backbone_config": _BACKBONE, "neck_hidden_sizes": [16, 32, 64, 64], "fusion_hidden_size": 64},
    "align": {"vision_config": _UNSCALED},
    "efficientnet": _UNSCALED | {"hidden_dim": 640},
    "dots1": _EXPERTS,
    "deepseek_v2": _EXPERTS | {"topk_method": "greedy"},
    "mask2former": _SWIN,
    "oneformer": _SWIN,
    "upernet": _SWIN,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0}},
    "esmc": {"num_key_value_heads": 4},
    "hgnet_v2": {"hidden_sizes": [256, 512, 1024, 2048]},
    "esm": {"vocab_size": 128, "pad_token_id": 1, "mask_token_id": 3},
    "glm46v": {"text_config": _ROPE_SECTIONS},
    "glm4v": {"text_config": _ROPE_SECTIONS},
    "glm4v_moe": {"text_config": _ROPE_SECTIONS | {"partial_rotary_factor": 1.0}},
    "glm_ocr": {"text_config": _ROPE_SECTIONS},
    "glmga": {"text_config": _ROPE_SECTIONS},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "ministral": {"head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 64, "true_hidden_size": 64},
    "mobilevit": {"hidden_sizes": [32, 48, 64]},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1},
    "paddleocr_vl": {"text_config": _ROPE_SECTIONS},
    "qwen2_5_omni_thinker": {"text_config": _ROPE_SECTIONS},
    "qwen2_5_vl": {"text_config": _ROPE_SECTIONS},
    "qwen2_vl": {"text_config": _ROPE_SECTIONS},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "max_position_embeddings": 256},
    "wav2vec2-bert": _VOCABULARY,
    "wav2vec2-conformer": _VOCABULARY,
    "xmod": {"default_language": "en_XX"},
    "conditional_detr": _RESNET,
    "dab-detr": _RESNET,
    "deformable_detr": _RESNET,
    "detr": _RESNET,
    "table-transformer": _RESNET,
}
"""Model type -> fields that must fit each other in a way that their names do not show."""


def candidates() -> Iterator[Candidate]:
    """Yield one network for each model type, in the order of the tasks."""
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for task in TASKS:
        for model_type, class_names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).items():
            if model_type in seen:
                continue
            seen.add(model_type)
            class_name = class_names if isinstance(class_names, str) else class_names[0]
            yield Candidate("transformers", model_type, partial(_make, model_type, class_name), _feed, generates=task == "CAUSAL_LM")


def _make(model_type: str, class_name: str) -> nn.Module:
    """Build the network from the default configuration made small.

    Raises:
        ValueError: If it is still larger than any small network.
    """
    import transformers
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**_merged(tiny_fields(config_class()), _OVERRIDES.get(model_type, {})))
    build = getattr(transformers, class_name)
    config = _expected(config, build)
    _check_size(build, config)
    return build(config)


def _merged(fields: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay two levels of fields."""
    merged = dict(fields)
    for name, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict) and name.endswith("_config")
        merged[name] = merged[name] | value if nested else value
    return merged


def _expected(config: Any, build: Any) -> Any:
    """Return the configuration itself, or the one inside it that the class is made for."""
    wanted = getattr(build, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    inner = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return next((found for found in inner if isinstance(found, wanted)), config)


def _check_size(build: Callable[[Any], nn.Module], config: Any) -> None:
    state = torch.get_rng_state()
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build(config).parameters())
    except (RuntimeError, NotImplementedError):  # reads values while it is built
        return
    finally:
        torch.set_rng_state(state)
    if count > _LARGEST:
        raise ValueError(f"the small configuration still has {count:,} parameters")


def _feed(model: nn.Module) -> Inputs:
    """Return the first inputs among the usual ones that the network runs on.

    Raises:
        Exception: What the network raised on the first of them, if it runs on none.
    """
    problems = []
    for make in (_text, _sequence_to_sequence, _image, _image_and_text, _video, _wave, _spectrum):
        inputs = make(model)
        if inputs is None:
            continue
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:  # noqa: BLE001  the next kind of input is tried
            problems.append(error)
            continue
        return inputs
    raise problems[0] if problems else TypeError(f"no known kind of input among {', '.join(_arguments(model))}")


def _arguments(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _ids(length: int = 12) -> torch.Tensor:
    return torch.randint(5, 90, (1, length))


def _text(model: nn.Module) -> Inputs | None:
    names = _arguments(model)
    if "input_ids" not in names or "decoder_input_ids" in names:
        return None
    return {"input_ids": _ids()}


def _sequence_to_sequence(model: nn.Module) -> Inputs | None:
    names = _arguments(model)
    if "input_ids" not in names or "decoder_input_ids" not in names:
        return None
    return {"input_ids": _ids(), "decoder_input_ids": _ids(8)}


def _setting(model: nn.Module, name: str, otherwise: int) -> int:
    """Return a size from the configuration or from one inside it."""
    for config in (model.config, *(getattr(model.config, inner, None) for inner in ("vision_config", "backbone_config", "audio_config"))):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return otherwise


def _picture(model: nn.Module, *frames: int) -> torch.Tensor:
    size = _setting(model, "image_size", 64)
    return torch.randn(1, *frames, _setting(model, "num_channels", 3), size, size)


def _image(model: nn.Module) -> Inputs | None:
    return {"pixel_values": _picture(model)} if "pixel_values" in _arguments(model) else None


def _image_and_text(model: nn.Module) -> Inputs | None:
    if not {"pixel_values", "input_ids"} <= set(_arguments(model)):
        return None
    return {"input_ids": _ids(), "pixel_values": _picture(model)}


def _video(model: nn.Module) -> Inputs | None:
    name = next((name for name in ("pixel_values", "pixel_values_videos") if name in _arguments(model)), None)
    return {name: _picture(model, _setting(model, "num_frames", _setting(model, "frames_per_clip", 8)))} if name else None


def _wave(model: nn.Module) -> Inputs | None:
    return {"input_values": torch.randn(1, 4000)} | _decoder(model) if "input_values" in _arguments(model) else None


def _spectrum(model: nn.Module) -> Inputs | None:
    name = next((name for name in ("input_features", "input_values") if name in _arguments(model)), None)
    if name is None:
        return None
    bins, frames = _setting(model, "num_mel_bins", 32), 2 * _setting(model, "max_source_positions", 32)
    shapes = ((1, bins, frames), (1, frames, bins), (1, _setting(model, "max_length", 64), bins))
    for shape in shapes:
        inputs = {name: torch.randn(shape)} | _decoder(model)
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception:  # noqa: BLE001  libraries order frames and bins in both ways
            continue
        return inputs
    return {name: torch.randn(shapes[0])} | _decoder(model)


def _decoder(model: nn.Module) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": _ids(6)} if "decoder_input_ids" in _arguments(model) else {}
