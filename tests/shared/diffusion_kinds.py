"""Denoisers of every kind for small images, and captions for some: transformers, cross-attention, and a model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diffusion_runs import NETWORK

from proxyprune.diffusion import StepAdaptiveConfig
from proxyprune.diffusion.data.image_data import load_data

DIT = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 1,
    "out_channels": 2,  # a variance beside each pixel, as published DiTs have it
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
    "norm_num_groups": 4,
}
CROSS = NETWORK | {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 6,
}
OWN = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.GroupNorm(2, width), nn.Conv2d(width, 12, 3, padding=1), nn.Conv2d(12, width, 3, padding=1)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.outside = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.level = nn.Linear(1, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))

    def forward(self, x, t):
        x = self.inside(x) + self.level(t.float()[:, None] / 1000)[:, :, None, None]
        return self.outside(self.blocks(x))

def build_model():
    return Denoiser()

def example_inputs():
    return torch.zeros(1, 1, 8, 8), torch.zeros(1)
"""


def embedded_digits(path: Path) -> None:
    """Digits with the embedding of a caption each: three tokens of six numbers that depend on the class."""
    data = load_data(StepAdaptiveConfig.preset("digits-class").data)
    assert data.labels is not None
    words = np.random.default_rng(0).normal(size=(10, 3, 6)).astype(np.float32)
    np.savez(path, images=data.train[:200].numpy(), embeddings=words[data.labels[:200].numpy()])
