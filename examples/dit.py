"""A diffusion transformer for scikit-learn's 8x8 digits with their labels, as a model file.

    proxyprune describe --model examples/dit.py
    proxyprune prune --model examples/dit.py --target 0.5 --mode both

The network is diffusers' DiT (Peebles and Xie, arXiv:2212.09748), small. Needs the extra `diffusion`, and scikit-learn for the images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor
from torch.nn import functional

SIZE = 8
TIMESTEPS = 1000
CLASSES = 10


class LabelledBatch(NamedTuple):
    """Noisy images of known digits, and the noise."""

    noisy: Tensor  # [images, 1, 8, 8]
    timestep: Tensor  # [images]
    label: Tensor  # [images]
    noise: Tensor  # [images, 1, 8, 8]


def build_model() -> DiTTransformer2DModel:
    """Four layers of four heads on 16 tokens."""
    return DiTTransformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_embeds_ada_norm=CLASSES,
    )


def example_inputs() -> dict[str, Tensor]:
    one = torch.zeros(1, dtype=torch.long)
    return {"hidden_states": torch.zeros(1, 1, SIZE, SIZE), "timestep": one, "class_labels": one}


def calibration_batches() -> list[LabelledBatch]:
    """Four batches of 64 images with fixed noise."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images[:256]).float().unsqueeze(1) / 8.0 - 1.0
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(images.shape, generator=generator)
    timestep = torch.randint(0, TIMESTEPS, (len(images),), generator=generator)
    noisy = DDPMScheduler(num_train_timesteps=TIMESTEPS).add_noise(images, noise, timestep)
    columns = (noisy, timestep, torch.from_numpy(data.target[:256]).long(), noise)
    return [LabelledBatch(*parts) for parts in zip(*(column.split(64) for column in columns), strict=True)]


def loss(model: DiTTransformer2DModel, batch: LabelledBatch) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, arXiv:2006.11239, eq. 14)."""
    return functional.mse_loss(model(batch.noisy, batch.timestep, batch.label).sample, batch.noise)
