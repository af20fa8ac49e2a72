"""The networks that every promise is tested on: small, seeded, random weights, batch of one.

`NETWORKS` maps a name to a `Network`; its `build` gives a module in eval mode and its `inputs` gives a tuple of positional
or a dict of keyword arguments. Both draw from a forked, seeded generator, so they leave the caller's random state alone and give the
same values every time. Libraries that cost seconds to import are imported when a network of theirs is built.

Tags:

- `diffusion`: a denoiser, or the autoencoder of a latent one.
- `residual`: has residual blocks, so depth pruning is expected to find removable ones.
- `functional_attention`: multiplies activations with activations (matmul, einsum, scaled dot product).
- `conv_or_linear_only`: every multiplication sits in a convolution or linear module.
- `trap`: runs after a naive cut and is wrong, or holds a width that no op of the graph shows.
- `recurrent`: carries a state from step to step.
- `large`: takes seconds; tested at one target.

A network has neither of the two counting tags when it multiplies weights outside modules of that kind (GPT-2's Conv1D, an LSTM).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Inputs = tuple[Any, ...] | dict[str, Any]

BUILD_SEED = 20
INPUT_SEED = 21


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        name: Key in `NETWORKS`.
        build: Makes the module, in eval mode, always with the same weights.
        inputs: Makes the example inputs, always the same values.
        tags: See the module's docstring.
        note: What the network is here for.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    tags: frozenset[str]
    note: str


NETWORKS: dict[str, Network] = {}


def names(*, having: str | None = None, lacking: str | None = "large") -> list[str]:
    """Names of the networks with the tag `having` and without the tag `lacking`, in the order of definition."""
    return [
        network.name
        for network in NETWORKS.values()
        if (having is None or having in network.tags) and (lacking is None or lacking not in network.tags)
    ]


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model on positional or keyword inputs, without gradients."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def measured_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates that FlopCounterMode sees, with everything switched off that hides matrix products from it.

    The default attention kernel, the fused path of nn.TransformerEncoder and nn.MultiheadAttention, and oneDNN's LSTM are single ops
    that it counts as nothing.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            warnings.simplefilter("ignore")  # switching oneDNN off and on warns about Intel GPUs
            with torch.backends.mkldnn.flags(enabled=False):
                run(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = counter.get_total_flops()
    assert flops % 2 == 0, "FlopCounterMode counts two operations for each multiply-accumulate"
    return flops // 2


def to_tensors(output: Any) -> list[Tensor]:
    """Return the floating-point and integer tensors of an output, depth first; values that hold no tensors (and caches) are left out."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in to_tensors(value)]
    if is_dataclass(output) and not isinstance(output, type):
        return [tensor for item in fields(output) for tensor in to_tensors(getattr(output, item.name))]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in to_tensors(value)]
    return []


def _seeded(make: Callable[[], Any], seed: int) -> Callable[[], Any]:
    def seeded() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return seeded


def network(
    name: str, inputs: Callable[[], Inputs], *tags: str, note: str = ""
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register the decorated function, which makes a module, under `name`."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        build = _seeded(lambda: make().eval(), BUILD_SEED)
        NETWORKS[name] = Network(name, build, _seeded(inputs, INPUT_SEED), frozenset(tags), note or (make.__doc__ or "").strip())
        return make

    return register


def image(size: int = 16, channels: int = 3) -> Callable[[], Inputs]:
    """Return inputs: one square image, [1, channels, size, size]."""
    return lambda: (torch.randn(1, channels, size, size),)


def token_ids(length: int = 12, vocabulary: int = 64) -> Callable[[], Inputs]:
    """Return inputs: one sequence of token ids, [1, length]."""
    return lambda: (torch.randint(0, vocabulary, (1, length)),)


def embedded(length: int = 12, width: int = 32) -> Callable[[], Inputs]:
    """Return inputs: one sequence of vectors, [1, length, width]."""
    return lambda: (torch.randn(1, length, width),)


def noisy(size: int = 16, channels: int = 3) -> Callable[[], Inputs]:
    """Return inputs of an unconditional denoiser: a noisy image and its timestep."""
    return lambda: (torch.randn(1, channels, size, size), torch.tensor([7]))


# ---------------------------------------------------------------------------------------------------------------- diffusers


@network(
    "ddpm_unet", noisy(), "diffusion", "residual", "functional_attention", note="DDPM U-Net with several attention heads and resamplers"
)
def _ddpm_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@network(
    "ddpm_unet_one_head",
    noisy(8),
    "diffusion",
    "residual",
    "functional_attention",
    note="attention_head_dim=None: one head as wide as the block",
)
def _ddpm_unet_one_head() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


@network(
    "ddpm_cifar10",
    noisy(32),
    "diffusion",
    "residual",
    "functional_attention",
    "large",
    note="the published DDPM CIFAR-10 U-Net, 35.7 M parameters",
)
def _ddpm_cifar10() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


@network(
    "ncsnpp_unet",
    noisy(),
    "diffusion",
    "residual",
    "functional_attention",
    note="NCSN++: skip blocks, FIR resampling, Fourier time embedding",
)
def _ncsnpp_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=None,
        norm_eps=1e-6,
        attention_head_dim=None,
        center_input_sample=True,
        freq_shift=0,
        time_embedding_type="fourier",
        mid_block_scale_factor=math.sqrt(2),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )


@network(
    "class_conditional_unet",
    lambda: {"sample": torch.randn(1, 3, 16, 16), "timestep": torch.tensor([7]), "class_labels": torch.tensor([3])},
    "diffusion",
    "residual",
    "conv_or_linear_only",
    note="class embedding added to the time embedding; no attention in the blocks",
)
def _class_conditional_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        num_class_embeds=10,
        add_attention=False,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


@network(
    "adm_unet", noisy(), "diffusion", "residual", "functional_attention", note="ADM: scale-shift norms, resampling inside residual blocks"
)
def _adm_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )


@network(
    "sd_unet",
    lambda: {"sample": torch.randn(1, 4, 16, 16), "timestep": torch.tensor([7]), "encoder_hidden_states": torch.randn(1, 7, 24)},
    "diffusion",
    "residual",
    "functional_attention",
    note="Stable Diffusion: self and cross attention of several heads, GEGLU",
)
def _sd_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


@network(
    "sdxl_unet",
    lambda: {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([7]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 16), "time_ids": torch.randn(1, 6)},
    },
    "diffusion",
    "residual",
    "functional_attention",
    note="SDXL: nested conditioning inputs, linear projections, several transformer layers",
)
def _sdxl_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


@network(
    "dit",
    lambda: {"hidden_states": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([7]), "class_labels": torch.tensor([3])},
    "diffusion",
    "residual",
    "functional_attention",
    note="DiT: adaLN-zero, position table, patch embedding",
)
def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )


@network(
    "pixart",
    lambda: {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([7]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    },
    "diffusion",
    "residual",
    "functional_attention",
    note="PixArt: adaLN-single with a bare scale-shift table, cross attention",
)
def _pixart() -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        cross_attention_dim=64,
        sample_size=8,
        patch_size=2,
        caption_channels=24,
    )


@network(
    "sd3",
    lambda: {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([7]),
    },
    "diffusion",
    "residual",
    "functional_attention",
    note="SD3: joint attention over two streams, cropped position table, normalised queries and keys",
)
def _sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=64,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


@network(
    "flux",
    lambda: {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.arange(48, dtype=torch.float32).view(16, 3),
        "txt_ids": torch.zeros(7, 3),
        "guidance": torch.tensor([3.5]),
    },
    "diffusion",
    "residual",
    "functional_attention",
    note="Flux: double and single stream blocks, rotary embedding, attention and feed-forward outputs concatenated",
)
def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


@network("autoencoder_kl", image(), "diffusion", "residual", "functional_attention", note="VAE: encoder, mean of the posterior, decoder")
def _autoencoder_kl() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


@network(
    "vq_model",
    image(),
    "diffusion",
    "residual",
    "functional_attention",
    note="VQ-VAE: nearest code of a codebook between encoder and decoder",
)
def _vq_model() -> nn.Module:
    from diffusers import VQModel

    return VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=3,
        num_vq_embeddings=32,
        norm_num_groups=4,
        sample_size=16,
    )


# ------------------------------------------------------------------------------------------------------------- transformers


def _text_config(**extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        **extra,
    }


def _vision_config(**extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        **extra,
    }


@network("vit", image(), "residual", "functional_attention", note="class token and position table as bare parameters")
def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=10, **_vision_config()))


@network("bert", token_ids(), "residual", "functional_attention", note="post-norm encoder with a pooler, several outputs")
def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_text_config()))


@network(
    "gpt2",
    token_ids(),
    "residual",
    "functional_attention",
    note="Conv1D layers with [in, out] weights, fused qkv, tied head; returns a cache object",
)
def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))


@network("llama_gqa", token_ids(), "residual", "functional_attention", note="grouped queries, rotary embedding, gated MLP")
def _llama_gqa() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, use_cache=False, **_text_config()))


@network("qwen2", token_ids(), "residual", "functional_attention", note="grouped queries with biases, tied head")
def _qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, use_cache=False, tie_word_embeddings=True, **_text_config()))


@network(
    "t5_encoder",
    token_ids(),
    "residual",
    "functional_attention",
    note="relative position bias shared by all layers, RMS norms, no attention scale",
)
def _t5_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", use_cache=False)
    )


@network(
    "whisper_encoder", lambda: (torch.randn(1, 16, 24),), "residual", "functional_attention", note="1d convolutions before a transformer"
)
def _whisper_encoder() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(
        WhisperConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, num_mel_bins=16, max_source_positions=12
        )
    )


@network("hf_resnet", image(32), "residual", "conv_or_linear_only", note="bottleneck ResNet")
def _hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], layer_type="bottleneck", num_labels=10)
    )


@network(
    "convnext",
    image(32),
    "residual",
    "conv_or_linear_only",
    note="depthwise convolutions, channels-last norms, layer scale as a bare parameter",
)
def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=10))


@network("swin", image(32), "residual", "functional_attention", note="shifted windows, position bias table of the heads, patch merging")
def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(
        SwinConfig(image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10)
    )


@network(
    "segformer",
    image(32),
    "residual",
    "functional_attention",
    note="spatially reduced keys, depthwise MLP, all-MLP decoder over four scales",
)
def _segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 32, 32, 64],
            num_attention_heads=[1, 2, 2, 4],
            sr_ratios=[4, 2, 1, 1],
            mlp_ratios=[2, 2, 2, 2],
            decoder_hidden_size=32,
            num_labels=10,
        )
    )


@network("clip_vision", image(), "residual", "functional_attention", note="CLIP image tower")
def _clip_vision() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**_vision_config()))


@network("mobilenet_v2", image(32), "residual", "conv_or_linear_only", note="inverted residuals, depthwise convolutions, BatchNorm")
def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32, depth_multiplier=0.35, num_labels=10))


# ---------------------------------------------------------------------------------------------------- convolutions by hand


def conv_bn(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    """Global average pooling and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


@network("plain_cnn", image(), "conv_or_linear_only")
def _plain_cnn() -> nn.Module:
    """VGG-like: BatchNorm, max pooling, and a flatten that spreads each channel over 16 inputs of a linear layer."""
    return nn.Sequential(
        conv_bn(3, 32),
        nn.MaxPool2d(2),
        conv_bn(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 10),
    )


@network("depthwise_separable", image(), "conv_or_linear_only")
def _depthwise_separable() -> nn.Module:
    """MobileNet v1: depthwise and pointwise convolutions; one depthwise layer with a multiplier of two."""
    return nn.Sequential(
        conv_bn(3, 32),
        conv_bn(32, 32, groups=32),
        conv_bn(32, 48, 1),
        conv_bn(48, 96, stride=2, groups=48),
        conv_bn(96, 64, 1),
        classifier(64),
    )


class ResidualBlock(nn.Module):
    """Adds a body to its input, through a projection where the widths differ."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut if shortcut is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


def _resnext_block(width: int, inner: int, groups: int) -> ResidualBlock:
    return ResidualBlock(
        nn.Sequential(
            conv_bn(width, inner, 1), conv_bn(inner, inner, groups=groups), nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        )
    )


@network("grouped_conv", image(), "residual", "conv_or_linear_only")
def _grouped_conv() -> nn.Module:
    """ResNeXt: grouped convolutions in residual blocks."""
    return nn.Sequential(conv_bn(3, 48), _resnext_block(48, 64, 4), _resnext_block(48, 32, 8), classifier(48))


class PaddingShortcut(nn.Module):
    """Option A of the ResNet paper: subsample, then pad the new channels with zeros."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))


@network("resnet_option_a", image(), "residual", "conv_or_linear_only")
def _resnet_option_a() -> nn.Module:
    """ResNet for CIFAR whose shortcut pads channels with zeros: the padded width is an attribute."""

    def body(inner: int, outer: int, stride: int) -> nn.Module:
        return nn.Sequential(conv_bn(inner, outer, stride=stride), nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))

    return nn.Sequential(
        conv_bn(3, 32),
        ResidualBlock(body(32, 32, 1)),
        ResidualBlock(body(32, 64, 2), PaddingShortcut(32)),
        ResidualBlock(body(64, 64, 1)),
        classifier(64),
    )


class DenseLayer(nn.Module):
    """Appends new feature maps to its input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


@network("dense_concat", image(), "conv_or_linear_only")
def _dense_concat() -> nn.Module:
    """DenseNet: every layer reads the concatenation of all before it."""
    dense = [DenseLayer(32 + 16 * index, 16) for index in range(3)]
    more = [DenseLayer(40 + 16 * index, 16) for index in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        *dense,
        nn.BatchNorm2d(80),
        nn.ReLU(),
        nn.Conv2d(80, 40, 1),
        nn.AvgPool2d(2),
        *more,
        nn.BatchNorm2d(72),
        classifier(72),
    )


class C2f(nn.Module):
    """YOLOv8's block: split in two, refine one part repeatedly, concatenate everything."""

    def __init__(self, inner: int, outer: int, hidden: int, depth: int, *, chunk: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.chunk = chunk
        self.expand = conv_bn(inner, 2 * hidden, 1)
        self.bottlenecks = nn.ModuleList(nn.Sequential(conv_bn(hidden, hidden), conv_bn(hidden, hidden)) for _ in range(depth))
        self.fuse = conv_bn((2 + depth) * hidden, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.expand(x)
        parts = list(expanded.chunk(2, dim=1) if self.chunk else expanded.split((self.hidden, self.hidden), dim=1))
        for bottleneck in self.bottlenecks:
            parts.append(parts[-1] + bottleneck(parts[-1]))
        return self.fuse(torch.cat(parts, dim=1))


@network("c2f", image(), "residual", "conv_or_linear_only")
def _c2f() -> nn.Module:
    """YOLOv8's C2f: once with chunk, once with split and a width kept in an attribute."""
    return nn.Sequential(
        conv_bn(3, 32), C2f(32, 48, 24, 2, chunk=True), conv_bn(48, 48, stride=2), C2f(48, 64, 24, 1, chunk=False), classifier(64)
    )


@network("transposed_autoencoder", image(), "conv_or_linear_only")
def _transposed_autoencoder() -> nn.Module:
    """Autoencoder with transposed convolutions, one of them grouped."""
    return nn.Sequential(
        conv_bn(3, 32, stride=2),
        conv_bn(32, 64, stride=2),
        nn.ConvTranspose2d(64, 48, 4, 2, 1, groups=4),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.ConvTranspose2d(48, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 3, 3, padding=1),
    )


class SuperResolution(nn.Module):
    """EDSR in small."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 32, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 32, 3, padding=1)) for _ in range(2)
        )
        self.expand = nn.Conv2d(32, 24 * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.refine = nn.Conv2d(24, 20, 3, padding=1)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.tail = nn.Conv2d(80, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.body:
            x = x + 0.1 * block(x)
        x = F.relu(self.refine(self.shuffle(self.expand(x))))
        return F.pixel_shuffle(self.tail(self.unshuffle(x)), 2)


@network("pixel_shuffle", image(8), "residual", "conv_or_linear_only")
def _pixel_shuffle() -> nn.Module:
    """Super-resolution: pixel shuffle and unshuffle between convolutions, residual blocks without norms."""
    return SuperResolution()


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: one half passes through, the other is convolved, then channels interleave."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half), conv_bn(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        x = torch.cat([kept, self.branch(worked)], dim=1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


@network("channel_shuffle", image(), "conv_or_linear_only")
def _channel_shuffle() -> nn.Module:
    """ShuffleNet v2: chunk, concatenation and channel shuffle tie most channels together."""
    return nn.Sequential(conv_bn(3, 48, stride=2), ShuffleUnit(48), ShuffleUnit(48), conv_bn(48, 96, 1), classifier(96))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.expand = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


@network("squeeze_excite", image(), "residual", "conv_or_linear_only")
def _squeeze_excite() -> nn.Module:
    """EfficientNet blocks: depthwise convolution and squeeze-excite inside an inverted residual."""

    def block(width: int, inner: int) -> nn.Module:
        return ResidualBlock(
            nn.Sequential(
                conv_bn(width, inner, 1),
                conv_bn(inner, inner, groups=inner),
                SqueezeExcite(inner, 12),
                nn.Conv2d(inner, width, 1),
                nn.BatchNorm2d(width),
            )
        )

    return nn.Sequential(conv_bn(3, 32), block(32, 64), block(32, 96), classifier(32))


class ViewGroupNorm(nn.Module):
    """GroupNorm written with a view and var_mean."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        grouped = x.view(batch, self.groups, channels // self.groups, height, width)
        variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), keepdim=True, correction=0)
        normed = ((grouped - mean) / torch.sqrt(variance + 1e-5)).view(batch, channels, height, width)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


@network("manual_group_norm", image(), "residual", "conv_or_linear_only")
def _manual_group_norm() -> nn.Module:
    """GroupNorm written out with views, beside the built-in one."""
    block = ResidualBlock(
        nn.Sequential(
            ViewGroupNorm(8, 32),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Conv2d(64, 32, 3, padding=1),
        )
    )
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), block, ViewGroupNorm(4, 32), nn.Conv2d(32, 48, 1), nn.ReLU(), classifier(48))


@network("conv1d", lambda: (torch.randn(1, 2, 64),), "conv_or_linear_only")
def _conv1d() -> nn.Module:
    """Audio-like: dilated and strided 1d convolutions, GroupNorm and InstanceNorm, transposed 1d convolution."""
    return nn.Sequential(
        nn.Conv1d(2, 32, 7, padding=3),
        nn.GroupNorm(4, 32),
        nn.GELU(),
        nn.Conv1d(32, 48, 3, padding=2, dilation=2),
        nn.InstanceNorm1d(48, affine=True),
        nn.PReLU(48),
        nn.Conv1d(48, 64, 4, 2, 1),
        nn.LeakyReLU(),
        nn.ConvTranspose1d(64, 24, 4, 2, 1),
        nn.Tanh(),
        nn.Conv1d(24, 2, 7, padding=3),
    )


@network("conv3d", lambda: (torch.randn(1, 2, 4, 8, 8),), "conv_or_linear_only")
def _conv3d() -> nn.Module:
    """Video-like: 3d convolutions, one factored in space and time."""
    return nn.Sequential(
        nn.Conv3d(2, 16, 3, padding=1),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.Conv3d(16, 24, (1, 3, 3), padding=(0, 1, 1)),
        nn.Conv3d(24, 32, (3, 1, 1), padding=(1, 0, 0)),
        nn.BatchNorm3d(32),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(32, 16, 3, padding=1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class Resampler(nn.Module):
    """Halves the resolution after checking its input's width against an attribute."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, out_channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels, f"expected {self.channels} channels, got {x.shape[1]}"
        return F.silu(self.conv(x))


@network("asserted_width", image(), "trap", "conv_or_linear_only")
def _asserted_width() -> nn.Module:
    """Return a width that only a Python assert reads: no op of the graph shows it."""
    return nn.Sequential(conv_bn(3, 32), Resampler(32, 48), Resampler(48, 64), classifier(64))


class AppliedTwice(nn.Module):
    """One convolution block whose output is its own second input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.shared = nn.Sequential(conv_bn(32, 48), nn.Conv2d(48, 32, 3, padding=1))
        self.head = classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.shared(x)
        return self.head(x + self.shared(x))


@network("shared_block", image(), "residual", "conv_or_linear_only")
def _shared_block() -> nn.Module:
    """Return the same block applied twice: its weights are cut once and cost twice."""
    return AppliedTwice()


class FeaturePyramid(nn.Module):
    """Top-down pathway over three scales; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 32, 48)
        self.stages = nn.ModuleList(conv_bn(inner, outer, stride=2) for inner, outer in zip((3, *widths), widths, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in widths)
        self.boxes = nn.Conv2d(32, 4, 1)
        self.classes = nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for index in range(len(levels) - 2, -1, -1):
            levels[index] = levels[index] + F.interpolate(levels[index + 1], size=levels[index].shape[-2:], mode="nearest")
        smoothed = [F.relu(smooth(level)) for smooth, level in zip(self.smooth, levels, strict=True)]
        return {"boxes": [self.boxes(level) for level in smoothed], "classes": [self.classes(level) for level in smoothed]}


@network("feature_pyramid", image(32), "conv_or_linear_only")
def _feature_pyramid() -> nn.Module:
    """FPN: interpolation, lateral sums, heads shared by all scales, outputs in a dict of lists."""
    return FeaturePyramid()


class Fire(nn.Module):
    """SqueezeNet: a narrow layer feeds two parallel ones."""

    def __init__(self, inner: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inner, squeeze, 1)
        self.small = nn.Conv2d(squeeze, expand, 1)
        self.large = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.small(x)), F.relu(self.large(x))], dim=1)


class Inception(nn.Module):
    """Four parallel branches of different widths, one of them pooling."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.point = conv_bn(inner, 16, 1)
        self.medium = nn.Sequential(conv_bn(inner, 12, 1), conv_bn(12, 24))
        self.wide = nn.Sequential(conv_bn(inner, 8, 1), conv_bn(8, 16, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(inner, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.point(x), self.medium(x), self.wide(x), self.pool(x)], dim=1)


@network("fire_inception", image(), "conv_or_linear_only")
def _fire_inception() -> nn.Module:
    """Concatenation of parallel branches: fire modules and an inception block."""
    return nn.Sequential(conv_bn(3, 32), Fire(32, 16, 24), nn.MaxPool2d(2), Fire(48, 16, 32), Inception(64), classifier(64))


class PointBranches(nn.Module):
    """Point cloud features by 1x1 convolutions, a maximum over points, and the global feature broadcast back."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU())
        self.segment = nn.Sequential(nn.Conv1d(96, 48, 1), nn.ReLU(), nn.Conv1d(48, 6, 1))

    def forward(self, points: Tensor) -> Tensor:
        local = self.local(points)
        pooled = torch.max(self.wide(local), dim=2, keepdim=True)[0]
        return self.segment(torch.cat([local, pooled.expand(-1, -1, points.shape[2])], dim=1))


@network("point_net", lambda: (torch.randn(1, 3, 40),), "conv_or_linear_only")
def _point_net() -> nn.Module:
    """PointNet segmentation: max over points, expand, concatenation with local features."""
    return PointBranches()


class Highway(nn.Module):
    """U-Net with plain convolutions, ceil-mode pooling and bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_bn(3, 24), conv_bn(24, 40), conv_bn(40, 56)])
        self.up = nn.ModuleList([conv_bn(56 + 40, 40), conv_bn(40 + 24, 24)])
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](F.max_pool2d(first, 2, ceil_mode=True))
        x = self.down[2](F.avg_pool2d(second, 2, ceil_mode=True))
        x = self.up[0](torch.cat([F.interpolate(x, size=second.shape[2:], mode="bilinear"), second], 1))
        x = self.up[1](torch.cat([F.interpolate(x, size=first.shape[2:], mode="bilinear"), first], 1))
        return self.head(x)


@network("segmentation_unet", image(18), "conv_or_linear_only")
def _segmentation_unet() -> nn.Module:
    """U-Net for segmentation: skip concatenations, odd sizes, bilinear upsampling."""
    return Highway()


# -------------------------------------------------------------------------------------------------- attention by hand


class PreNormLayer(nn.Module):
    """A transformer layer around any token mixer and any feed-forward network."""

    def __init__(self, width: int, mixer: nn.Module, feedforward: nn.Module, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.mixer = mixer
        self.norm2 = norm(width)
        self.feedforward = feedforward

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.feedforward(self.norm2(x))


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers and a GELU."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class FusedQkvAttention(nn.Module):
    """timm's attention: one projection of [3, heads, dim]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, width))


class TimmStyleAttention(FusedQkvAttention):
    """The same with head_dim and an inner width taken from attributes, so heads can leave while the block keeps its width."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class VisionTransformer(nn.Module):
    """Patch embedding, class token, position table, transformer layers, head."""

    def __init__(self, width: int, layers: Iterable[nn.Module], patches: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, patches + 1, width))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


@network("fused_qkv_vit", image(), "residual", "functional_attention")
def _fused_qkv_vit() -> nn.Module:
    """ViT with a fused projection ordered (3, heads, dim); the head width is computed from the input's width in one layer."""
    return VisionTransformer(
        64, [PreNormLayer(64, FusedQkvAttention(64, 4), mlp(64, 128)), PreNormLayer(64, TimmStyleAttention(64, 8), mlp(64, 128))]
    )


class InterleavedQkvAttention(nn.Module):
    """One projection ordered (heads, 3, dim), as in GPT-NeoX."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (self.heads, 3 * self.dim)).transpose(1, 2).split(self.dim, dim=-1)
        return self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2))


class Embedded(nn.Module):
    """A linear layer in front, so that the width of what follows is free, and one behind."""

    def __init__(self, inner: int, width: int, body: nn.Module, outer: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(inner, width)
        self.body = body
        self.head = nn.Linear(width, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


@network("interleaved_qkv", embedded(), "residual", "functional_attention")
def _interleaved_qkv() -> nn.Module:
    """Fused projection ordered (heads, 3, dim): a head's rows lie together."""
    return Embedded(32, 64, nn.Sequential(*(PreNormLayer(64, InterleavedQkvAttention(64, 4), mlp(64, 96)) for _ in range(2))))


class EinsumAttention(nn.Module):
    """Separate projections and einsum, in the [batch, length, heads, dim] layout."""

    def __init__(self, width: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.dim = dim
        self.query = nn.Linear(width, heads * dim, bias=False)
        self.key = nn.Linear(width, heads * dim, bias=False)
        self.value = nn.Linear(width, heads * dim, bias=False)
        self.out = nn.Linear(heads * dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (layer(x).view(batch, length, self.heads, self.dim) for layer in (self.query, self.key, self.value))
        weights = torch.einsum("bqhd,bkhd->bhqk", query, key).mul(self.dim**-0.5).softmax(-1)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, self.heads * self.dim))


@network("einsum_attention", embedded(), "residual", "functional_attention")
def _einsum_attention() -> nn.Module:
    """Attention by einsum; the inner width differs from the block's."""
    return Embedded(32, 48, nn.Sequential(*(PreNormLayer(48, EinsumAttention(48, 6, 12), mlp(48, 96)) for _ in range(2))))


class ModuleAttention(nn.Module):
    """nn.MultiheadAttention as a token mixer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@network("multihead_attention", embedded(), "residual", "functional_attention")
def _multihead_attention() -> nn.Module:
    """nn.MultiheadAttention: parameters passed to one functional call, widths kept in attributes."""
    return Embedded(32, 64, nn.Sequential(*(PreNormLayer(64, ModuleAttention(64, 4), mlp(64, 96)) for _ in range(2))))


@network("transformer_encoder_prenorm", embedded(), "residual", "functional_attention")
def _transformer_encoder_prenorm() -> nn.Module:
    """nn.TransformerEncoder, norm first."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
    return Embedded(32, 64, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@network("transformer_encoder_postnorm", embedded(), "residual", "functional_attention")
def _transformer_encoder_postnorm() -> nn.Module:
    """nn.TransformerEncoder, norm last, which takes a fused path in eval mode when it can."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=False, activation="gelu")
    return Embedded(32, 64, nn.TransformerEncoder(layer, 2))


class TiedLanguageModel(nn.Module):
    """The embedding is also the output layer."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(32, width)
        self.layers = nn.Sequential(*(PreNormLayer(width, InterleavedQkvAttention(width, 4), mlp(width, 2 * width)) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.layers(self.tokens(ids) + self.positions(position))))


@network("tied_language_model", token_ids(), "residual", "functional_attention")
def _tied_language_model() -> nn.Module:
    """Tied embedding and head: one parameter under two names stays one."""
    return TiedLanguageModel(64, 64)


class GatedMlp(nn.Module):
    """GEGLU or GLU: half of a projection gates the other."""

    def __init__(self, width: int, hidden: int, *, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.expand = nn.Linear(width, 2 * hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return self.contract(F.glu(self.expand(x), dim=-1))
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(value * F.gelu(gate))


class NormedResidual(nn.Module):
    """x + body(norm(x))."""

    def __init__(self, width: int, body: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x))


@network("gated_mlp", embedded(), "residual", "conv_or_linear_only")
def _gated_mlp() -> nn.Module:
    """GEGLU by chunk and GLU by the functional."""
    blocks = [NormedResidual(48, GatedMlp(48, 64, functional=functional)) for functional in (False, True, False)]
    return Embedded(32, 48, nn.Sequential(*blocks))


class HandmadeRmsNorm(nn.Module):
    """x / rms(x), written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class RotaryGroupedAttention(nn.Module):
    """Grouped queries with rotary embedding, keys and values repeated for their queries."""

    def __init__(self, width: int, heads: int, kv_heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        self.dim = dim
        self.wq = nn.Linear(width, heads * dim, bias=False)
        self.wk = nn.Linear(width, kv_heads * dim, bias=False)
        self.wv = nn.Linear(width, kv_heads * dim, bias=False)
        self.wo = nn.Linear(heads * dim, width, bias=False)
        frequency = 100.0 ** (-torch.arange(0, dim, 2) / dim)
        angle = torch.outer(torch.arange(32), frequency)
        self.register_buffer("cosine", torch.cat([angle.cos()] * 2, -1), persistent=False)
        self.register_buffer("sine", torch.cat([angle.sin()] * 2, -1), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        first, second = x[..., : self.dim // 2], x[..., self.dim // 2 :]
        return x * self.cosine[:length] + torch.cat([-second, first], -1) * self.sine[:length]

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query = self.rotate(self.wq(x).view(batch, length, self.heads, self.dim).transpose(1, 2))
        key = self.rotate(self.wk(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2))
        value = self.wv(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        repeats = self.heads // self.kv_heads
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        weights = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(self.dim)
        mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        attended = torch.softmax(weights + mask, dim=-1) @ value
        return self.wo(attended.transpose(1, 2).contiguous().view(batch, length, -1))


@network("rotary_grouped", embedded(), "residual", "functional_attention")
def _rotary_grouped() -> nn.Module:
    """Handmade RMS norm, rotary embedding, grouped queries by repeat_interleave, causal mask."""
    layers = [PreNormLayer(48, RotaryGroupedAttention(48, 6, 3, 8), GatedMlp(48, 64, functional=False), HandmadeRmsNorm) for _ in range(2)]
    return Embedded(32, 48, nn.Sequential(*layers))


class MixerLayer(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token_mlp = mlp(tokens, 24)
        self.norm2 = nn.LayerNorm(width)
        self.channel_mlp = mlp(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer with an average over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 48, 4, 4)
        self.layers = nn.Sequential(MixerLayer(16, 48), MixerLayer(16, 48))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(dim=1))


@network("mlp_mixer", image(), "residual", "conv_or_linear_only")
def _mlp_mixer() -> nn.Module:
    """MLP-Mixer: linear layers over tokens, whose number is fixed by the image, and over channels."""
    return Mixer()


class ConstantHeads(nn.Module):
    """Attention whose head count is a number in forward: fewer channels still split in four, and give wrong heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@network("constant_heads", embedded(), "residual", "functional_attention", "trap")
def _constant_heads() -> nn.Module:
    """Return a head count written as a constant: a cut of whole heads runs and is wrong, so the heads must be pinned."""
    return Embedded(32, 64, nn.Sequential(*(PreNormLayer(64, ConstantHeads(64), mlp(64, 128)) for _ in range(2))))


class RelativeBiasAttention(nn.Module):
    """Attention with a learned bias per head, looked up by an index table."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.dim = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.randn(2 * length - 1, heads))
        position = torch.arange(length)
        self.register_buffer("index", position[:, None] - position[None, :] + length - 1)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        bias = self.bias_table[self.index.view(-1)].view(length, length, -1).permute(2, 0, 1).contiguous()
        weights = torch.matmul(query, key.transpose(-2, -1)) * self.temperature + bias.unsqueeze(0)
        return self.out((weights.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, -1))


@network("relative_bias", embedded(), "residual", "functional_attention")
def _relative_bias() -> nn.Module:
    """Position bias table and temperature per head, as bare parameters."""
    return Embedded(32, 64, nn.Sequential(*(PreNormLayer(64, RelativeBiasAttention(64, 4, 12), mlp(64, 96)) for _ in range(2))))


class SpatialLinearAttention(nn.Module):
    """Linear attention over an image: softmax over keys, then a dim x dim context per head."""

    def __init__(self, width: int, heads: int = 4, dim: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim**-0.5
        self.to_qkv = nn.Conv2d(width, 3 * heads * dim, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim, width, 1), ChannelNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        query, key, value = (part.reshape(batch, self.heads, -1, height * width) for part in self.to_qkv(x).chunk(3, dim=1))
        query = query.softmax(dim=-2) * self.scale
        key = key.softmax(dim=-1)
        context = torch.einsum("bhdn,bhen->bhde", key, value)
        attended = torch.einsum("bhde,bhdn->bhen", context, query)
        return self.to_out(attended.reshape(batch, -1, height, width))


class ChannelNorm(nn.Module):
    """RMS norm over the channels of an image, by F.normalize."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.scale = width**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.gain * self.scale


class TimedResnetBlock(nn.Module):
    """Two convolutions; the time embedding scales and shifts in between."""

    def __init__(self, inner: int, outer: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * outer))
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, outer)
        self.shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        return F.silu(self.norm2(self.conv2(hidden))) + self.shortcut(x)


class LinearAttentionUnet(nn.Module):
    """A denoiser in the style of denoising-diffusion-pytorch, two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 7, padding=3)
        self.time = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))
        self.down1 = TimedResnetBlock(24, 24, 64)
        self.attention1 = SpatialLinearAttention(24)
        self.reduce = nn.Conv2d(24 * 4, 48, 1)
        self.middle = TimedResnetBlock(48, 48, 64)
        self.attention2 = SpatialLinearAttention(48)
        self.expand = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(48, 24, 3, padding=1))
        self.up1 = TimedResnetBlock(48, 24, 64)
        self.last = TimedResnetBlock(48, 24, 64)
        self.head = nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        frequency = torch.exp(torch.arange(8, device=x.device, dtype=x.dtype) * -(math.log(10000) / 7))
        angle = step[:, None].to(x.dtype) * frequency[None, :]
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        x = self.stem(x)
        residual = x
        x = self.down1(x, time)
        x = x + self.attention1(x)
        skip = x
        batch, channels, height, width = x.shape
        x = (
            x.view(batch, channels, height // 2, 2, width // 2, 2)
            .permute(0, 1, 3, 5, 2, 4)
            .reshape(batch, channels * 4, height // 2, width // 2)
        )
        x = self.middle(self.reduce(x), time)
        x = self.expand(x + self.attention2(x))
        x = self.up1(torch.cat([x, skip], dim=1), time)
        return self.head(self.last(torch.cat([x, residual], dim=1), time))


@network("linear_attention_unet", noisy(), "diffusion", "residual", "functional_attention")
def _linear_attention_unet() -> nn.Module:
    """U-Net with linear attention, space-to-depth by rearranging, norm over channels by F.normalize."""
    return LinearAttentionUnet()


# --------------------------------------------------------------------------------------------------------------- recurrent


class Lstm(nn.Module):
    """Embedding, two-layer bidirectional LSTM, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 48)
        self.lstm = nn.LSTM(48, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(64, 512)
        self.head = nn.Linear(512, 8)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.lstm(F.relu(self.embed(x)))
        return self.head(F.relu(self.hidden(output)))


@network("lstm", embedded(), "recurrent")
def _lstm() -> nn.Module:
    """nn.LSTM between linear layers: its hidden units are shared by four gates, two layers and two directions."""
    return Lstm()


class ConvLstmCell(nn.Module):
    """One convolution makes all four gates."""

    def __init__(self, inner: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inner + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        entry, forget, output, candidate = self.gates(torch.cat([x, hidden], dim=1)).split(self.hidden, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(entry) * torch.tanh(candidate)
        return torch.sigmoid(output) * torch.tanh(memory), memory


class ConvLstm(nn.Module):
    """A cell unrolled over three frames, its state made from the width in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(2, 16, 3, padding=1)
        self.cell = ConvLstmCell(16, 24)
        self.decode = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1))

    def forward(self, frames: Tensor) -> Tensor:
        batch, length, _, height, width = frames.shape
        hidden = frames.new_zeros(batch, self.cell.hidden, height, width)
        memory = frames.new_zeros(batch, self.cell.hidden, height, width)
        outputs = []
        for index in range(length):
            hidden, memory = self.cell(F.relu(self.encode(frames[:, index])), hidden, memory)
            outputs.append(self.decode(hidden))
        return torch.stack(outputs, dim=1)


@network("conv_lstm", lambda: (torch.randn(1, 3, 2, 8, 8),), "recurrent", "conv_or_linear_only")
def _conv_lstm() -> nn.Module:
    """ConvLSTM unrolled: a state that starts as zeros of a width from an attribute, four gates in one convolution, shared weights."""
    return ConvLstm()
