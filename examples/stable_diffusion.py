"""Stable Diffusion 1.5's U-Net (860 M parameters), as a model file for looking and planning without its weights.

    proxyprune describe --model examples/stable_diffusion.py --fake-weights
    proxyprune prune --model examples/stable_diffusion.py --fake-weights --plan-only --scorer random --target 0.7

Without `--fake-weights` it is built with random weights, which takes 3.4 GB; give yours with `--weights FILE.safetensors`. Needs the
extra `diffusion`.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

LATENT_SIZE = 64  # for images of 512 x 512
TEXT_TOKENS, TEXT_WIDTH = 77, 768


def build_model() -> UNet2DConditionModel:
    """Return the published configuration (Rombach et al., arXiv:2112.10752)."""
    return UNet2DConditionModel(sample_size=LATENT_SIZE, cross_attention_dim=TEXT_WIDTH, attention_head_dim=8)


def example_inputs() -> dict[str, Tensor]:
    """One latent image, its timestep, and the text that goes with it."""
    return {
        "sample": torch.zeros(1, 4, LATENT_SIZE, LATENT_SIZE),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, TEXT_TOKENS, TEXT_WIDTH),
    }
