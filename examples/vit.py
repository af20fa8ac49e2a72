"""A vision transformer that classifies scikit-learn's 8x8 digits, as a model file; hand-written, so that it needs torch only.

    proxyprune describe --model examples/vit.py
    proxyprune prune --model examples/vit.py --target 0.6

Whole heads leave, and `heads` follows them: the forward splits queries, keys and values by this attribute, as most hand-written attention
does. The layout is that of Dosovitskiy et al. (arXiv:2010.11929) with the mean of all tokens in place of a class token.
"""

from __future__ import annotations

import torch
from resnet import calibration_batches, loss  # the same images and the same loss
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["build_model", "calibration_batches", "example_inputs", "loss"]

PATCH = 2
TOKENS = (8 // PATCH) ** 2


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # [batch, tokens, width] to the same
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, positions, layers, and a linear head on the mean token."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, TOKENS, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:  # [batch, 1, 8, 8] to [batch, classes]
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(tokens)).mean(dim=1))


def build_model() -> VisionTransformer:
    return VisionTransformer()


def example_inputs() -> Tensor:
    return torch.zeros(1, 1, 8, 8)
