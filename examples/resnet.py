"""A residual network that classifies scikit-learn's 8x8 digits, as a model file.

    proxyprune describe --model examples/resnet.py
    proxyprune prune --model examples/resnet.py --target 0.5 --mode both

The layout is the one that He et al. used for CIFAR (arXiv:1512.03385, section 4.2), with two blocks a stage. The batches need
scikit-learn; everything else needs torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of residual blocks, and a linear head."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks_per_stage: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for index in range(blocks_per_stage):
                blocks.append(ResidualBlock(before, width, stride=2 if stage > 0 and index == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x))
        return self.head(features.mean(dim=(2, 3)))


def build_model() -> ResNet:
    return ResNet()


def example_inputs() -> Tensor:
    return torch.zeros(1, 1, 8, 8)


def calibration_batches() -> list[tuple[Tensor, Tensor]]:
    """Four batches of 64 images with their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images[:256]).float().unsqueeze(1) / 8.0 - 1.0
    labels = torch.from_numpy(data.target[:256]).long()
    return list(zip(images.split(64), labels.split(64), strict=True))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return functional.cross_entropy(model(images), labels)
