"""Small networks of transformers and diffusers with random weights, for configs and plain folders: one of each kind that people deploy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class StandardNetwork:
    """One network.

    Attributes:
        build: Makes the module, in eval mode, always with the same weights.
        inputs: Makes the example inputs, always the same values.
        mode: Mode of the plan.
        refused: Number of the config that stands in the way, by target; empty where every target can be expressed.
        coarse: Why the steps of the widths are too coarse for 1 %, or "".
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    mode: str = "width"
    refused: dict[float, str] | None = None
    coarse: str = ""


def _seeded(make: Callable[[], Any], seed: int) -> Callable[[], Any]:
    def seeded() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return seeded


def _evaluated(build: Callable[[], nn.Module]) -> nn.Module:
    return build().eval()


def _language(name: str, **settings: Any) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 96}
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config(**sizes, num_key_value_heads=4, **settings))
    return model


def _llama() -> nn.Module:
    return _language("Llama")


def _qwen3() -> nn.Module:
    return _language("Qwen3", head_dim=8)


def _gemma3() -> nn.Module:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    return _language("Gemma3", head_dim=8, sliding_window=8, layer_types=kinds)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 96}
    return BertForSequenceClassification(BertConfig(**sizes))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=10))


def _clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text, vision = {**sizes, "vocab_size": 96}, {**sizes, "image_size": 16, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(d_model=32, d_kv=8, d_ff=96, num_layers=2, num_heads=4, vocab_size=96))


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 2, 1], layer_type="basic"))


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=10))


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 64, 96),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
    )


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        num_layers=10,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )


def _autoencoder() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
    )


def _conditional_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=4,
    )


def _ids() -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 90, (1, 12))}


def _image(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(1, 3, size, size)}


def _noisy(channels: int, size: int) -> dict[str, Any]:
    return {"sample": torch.randn(1, channels, size, size), "timestep": torch.tensor([3])}


def _latents() -> dict[str, Any]:
    return {"hidden_states": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([3]), "class_labels": torch.tensor([1])}


_NETWORKS: dict[str, StandardNetwork] = {
    "Llama": StandardNetwork(_llama, _ids),
    "Qwen3": StandardNetwork(_qwen3, _ids),
    "Gemma 3": StandardNetwork(_gemma3, _ids),
    "BERT": StandardNetwork(_bert, _ids),
    "ViT": StandardNetwork(_vit, _image(16)),
    "CLIP": StandardNetwork(_clip, lambda: _ids() | _image(16)()),
    "T5": StandardNetwork(_t5, lambda: _ids() | {"decoder_input_ids": torch.randint(0, 90, (1, 6))}),
    "ResNet": StandardNetwork(_resnet, _image(32)),
    "ConvNeXt": StandardNetwork(_convnext, _image(32)),
    "UNet2DModel": StandardNetwork(_unet, lambda: _noisy(3, 16)),
    "DiT, width": StandardNetwork(_dit, _latents, refused={0.8: "num_attention_heads", 0.6: "num_attention_heads"}),
    "DiT, depth": StandardNetwork(_dit, _latents, mode="depth", coarse="a layer is a tenth of the network"),
    "AutoencoderKL": StandardNetwork(_autoencoder, lambda: {"sample": torch.randn(1, 3, 16, 16)}, refused={0.6: "block_out_channels"}),
    "UNet2DConditionModel": StandardNetwork(
        _conditional_unet,
        lambda: _noisy(4, 8) | {"encoder_hidden_states": torch.randn(1, 5, 32)},
        coarse="channels leave with whole heads, eighths of a level",
    ),
}

STANDARD: dict[str, StandardNetwork] = {
    name: replace(entry, build=_seeded(partial(_evaluated, entry.build), 20), inputs=_seeded(entry.inputs, 21))
    for name, entry in _NETWORKS.items()
}
"""Name -> network."""
