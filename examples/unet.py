"""A small diffusion U-Net for scikit-learn's 8x8 digits, as a model file.

    proxyprune describe --model examples/unet.py
    proxyprune prune --model examples/unet.py --target 0.6

`examples/demo.py` trains it for a minute. Needs the extra `diffusion`, and scikit-learn for the images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.nn import functional

SIZE = 8
TIMESTEPS = 1000
HELD_OUT = 297  # of 1,797 images


class NoisyBatch(NamedTuple):
    """Images with noise on them, and the noise: what a denoiser is trained and judged with."""

    noisy: Tensor  # [images, 1, 8, 8]
    timestep: Tensor  # [images]
    noise: Tensor  # [images, 1, 8, 8]


def build_model() -> UNet2DModel:
    """Two resolutions, residual blocks with a time embedding, attention at the lower one."""
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=4,
    )


def example_inputs() -> dict[str, Tensor]:
    """One image and its timestep; a batch of one makes every cost a cost per sample."""
    return {"sample": torch.zeros(1, 1, SIZE, SIZE), "timestep": torch.zeros(1, dtype=torch.long)}


def calibration_batches() -> list[NoisyBatch]:
    """Four batches of training images with fixed noise, so that two models are compared on the same noise."""
    images, _ = digits()
    return noisy_batches(images[:256], batch_size=64, generator=torch.Generator().manual_seed(1))


def loss(model: UNet2DModel, batch: NoisyBatch) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, arXiv:2006.11239, eq. 14)."""
    return functional.mse_loss(model(batch.noisy, batch.timestep).sample, batch.noise)


def digits() -> tuple[Tensor, Tensor]:
    """Training and held-out images, [images, 1, 8, 8], scaled to [-1, 1]."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8.0 - 1.0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]


def noisy_batches(images: Tensor, *, batch_size: int, generator: torch.Generator) -> list[NoisyBatch]:
    """Put noise of random timesteps on images, with the noise schedule of DDPM."""
    schedule = DDPMScheduler(num_train_timesteps=TIMESTEPS)
    noise = torch.randn(images.shape, generator=generator)
    timestep = torch.randint(0, TIMESTEPS, (len(images),), generator=generator)
    noisy = schedule.add_noise(images, noise, timestep)
    return [NoisyBatch(*parts) for parts in zip(noisy.split(batch_size), timestep.split(batch_size), noise.split(batch_size), strict=True)]
