"""Fashion-MNIST, and the three trained networks that the scorer benchmarks prune.

The images come from Debian's package dataset-fashion-mnist (`apt-get install dataset-fashion-mnist`), or from the four IDX files of
https://github.com/zalandoresearch/fashion-mnist in a folder named by FASHION_MNIST. They are shrunk to 16 x 16, so that a core is enough.
The trained weights are in benchmarks/networks: trained again on another processor, the CNN comes out different enough to change results.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

CACHE = Path(__file__).parent / ".cache"
SIZE = 16
TIMESTEPS = 1000
CLASSES = 10
TRAINING_SEED = 0

NETWORKS = Path(__file__).parent / "networks"
SHA256 = {
    "cnn": "09db7391db5f20aa970770853a2fe1d888c35fca7a25c56909b6c448a8aa709f",
    "unet": "a04663592ded7382671f21e2da31816f7b7636ddd3ac0fbeaaf07375653f557e",
    "dit": "8449475b83b01b0f1401879237e01740d5d1fb9d71116f4de0d978a1fd18b96c",
}
"""Network -> hash of its committed weights."""

_FOLDERS = ("/usr/share/datasets/fashion-mnist", "/usr/share/dataset/fashion-mnist")


class Noisy(NamedTuple):
    """What a denoiser is trained and judged with."""

    noisy: Tensor  # [images, 1, 16, 16]
    timestep: Tensor  # [images]
    label: Tensor  # [images]
    noise: Tensor  # [images, 1, 16, 16]


@dataclass(frozen=True)
class Subject:
    """A network to prune and everything to measure it with.

    Attributes:
        name: For tables.
        build: Makes the untrained network.
        example_inputs: One sample.
        make_batches: Images and labels -> batches, with a seed for what is drawn.
        loss_fn: Loss of the model on a batch.
        training: (updates, images in each).
        learning_rate: Peak of one cosine cycle.
        recovery_rate: Of the fine-tuning after a cut: high enough to help, low enough that the unpruned network does not get worse by it.
        quality: Name of a further measure and the measure, or None.
    """

    name: str
    build: Callable[[], nn.Module]
    example_inputs: tuple[Tensor, ...]
    make_batches: Callable[[Tensor, Tensor, int, int], list[Any]]
    loss_fn: Callable[[nn.Module, Any], Tensor]
    training: tuple[int, int]
    learning_rate: float
    recovery_rate: float
    quality: tuple[str, Callable[[nn.Module, Sequence[Any]], float]] | None = None


class Residual(nn.Module):
    """Two convolutions with batch norm and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))))


class Down(nn.Module):
    """Half the resolution, twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))


class ResidualCNN(nn.Module):
    """Three stages of three residual blocks, 16 to 64 channels."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.down1 = Down(width)
        self.stage2 = nn.Sequential(*(Residual(2 * width) for _ in range(blocks)))
        self.down2 = Down(2 * width)
        self.stage3 = nn.Sequential(*(Residual(4 * width) for _ in range(blocks)))
        self.head = nn.Linear(4 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.down2(self.stage2(self.down1(self.stage1(self.stem(x))))))
        return self.head(x.mean((2, 3)))


def unet() -> nn.Module:
    """Return a DDPM U-Net: 12 to 24 channels, two resolutions, attention at 8 x 8."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(12, 24),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
    )


def dit() -> nn.Module:
    """Return a DiT: patches of 4, 16 tokens of 64 channels, 6 layers, classes as the condition."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        sample_size=SIZE,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
    )


def labelled_batches(images: Tensor, labels: Tensor, size: int, seed: int) -> list[Any]:
    """(images, labels) pairs, in the given order."""
    return list(zip(images.split(size), labels.split(size), strict=True))


def noisy_batches(images: Tensor, labels: Tensor, size: int, seed: int) -> list[Any]:
    """Noise of random timesteps on images, with DDPM's linear schedule (Ho et al. 2020, arXiv:2006.11239)."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, TIMESTEPS), 0)
    timestep = torch.randint(0, TIMESTEPS, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    level = kept[timestep].reshape(-1, 1, 1, 1)
    noisy = level.sqrt() * images + (1.0 - level).sqrt() * noise
    parts = (noisy, timestep, labels, noise)
    return [Noisy(*batch) for batch in zip(*(part.split(size) for part in parts), strict=True)]


def classification_loss(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def unet_loss(model: nn.Module, batch: Noisy) -> Tensor:
    return functional.mse_loss(model(batch.noisy, batch.timestep).sample, batch.noise)


def dit_loss(model: nn.Module, batch: Noisy) -> Tensor:
    return functional.mse_loss(model(batch.noisy, batch.timestep, batch.label).sample, batch.noise)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[Any]) -> float:
    """Share of right answers."""
    was_training = model.training
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    model.train(was_training)
    return right / sum(len(labels) for _, labels in batches)


_IMAGE = torch.zeros(1, 1, SIZE, SIZE)
_TIME, _CLASS = torch.tensor([10]), torch.tensor([1])

SUBJECTS = (
    Subject("cnn", ResidualCNN, (_IMAGE,), labelled_batches, classification_loss, (700, 128), 4e-3, 1.25e-4, ("accuracy", accuracy)),
    Subject("unet", unet, (_IMAGE, _TIME), noisy_batches, unet_loss, (800, 64), 2e-3, 5e-4),
    Subject("dit", dit, (_IMAGE, _TIME, _CLASS), noisy_batches, dit_loss, (1200, 64), 1e-3, 2.5e-4),
)


@cache
def images(split: str) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 16, 16] in [-1, 1] and labels [n] of "train" or "t10k"."""
    folder = _folder()
    content = {kind: gzip.decompress((folder / f"{split}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")}
    pixels = np.frombuffer(content["images-idx3"], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(content["labels-idx1"], np.uint8, offset=8)
    padded = functional.pad(torch.from_numpy(pixels.copy()).float(), (2, 2, 2, 2))
    return functional.avg_pool2d(padded, 2) / 127.5 - 1.0, torch.from_numpy(labels.astype(np.int64))


def _folder() -> Path:
    places = [os.environ["FASHION_MNIST"]] if "FASHION_MNIST" in os.environ else _FOLDERS
    for place in places:
        if (Path(place) / "train-images-idx3-ubyte.gz").is_file():
            return Path(place)
    raise SystemExit(
        f"No Fashion-MNIST in {', '.join(places)}. Install it with `apt-get install dataset-fashion-mnist`, or put the four .gz files of "
        "github.com/zalandoresearch/fashion-mnist into a folder and name it in FASHION_MNIST."
    )


def trained(subject: Subject) -> nn.Module:
    """Return the network with its committed weights; a network without any is trained, and kept in the cache."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TRAINING_SEED)
        model = subject.build()
    path = CACHE / f"{subject.name}.safetensors"
    if subject.name in SHA256:
        path = committed(subject.name)
    if path.is_file():
        load_model(model, str(path))
        return model.eval()
    started = time.perf_counter()
    train(subject, model)
    CACHE.mkdir(exist_ok=True)
    save_model(model, str(path))
    Console().print(f"trained {subject.name}: {subject.training[0]} steps in {time.perf_counter() - started:.0f} s")
    return model.eval()


def committed(name: str, folder: Path = NETWORKS) -> Path:
    """Return the file of a network's weights, unchanged since it was committed."""
    path = folder / f"{name}.safetensors"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != SHA256[name]:
        raise SystemExit(f"{path} is not what was committed ({found[:12]}, expected {SHA256[name][:12]}). Restore it with git.")
    return path


def train(subject: Subject, model: nn.Module) -> None:
    """AdamW with one cosine cycle over the first 50,000 images; the rest of the training set is for calibration."""
    steps, batch_size = subject.training
    pixels, labels = (values[:50_000] for values in images("train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=subject.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, subject.learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(TRAINING_SEED)
    model.train()
    for step in range(steps):
        chosen = torch.randint(0, len(pixels), (batch_size,), generator=generator)
        (batch,) = subject.make_batches(pixels[chosen], labels[chosen], batch_size, step)
        optimizer.zero_grad()
        subject.loss_fn(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def batches_of(subject: Subject, split: str, start: int, count: int, size: int, seed: int) -> list[Any]:
    """`count` batches of `size` images from `start` on."""
    pixels, labels = images(split)
    stop = start + count * size
    return subject.make_batches(pixels[start:stop], labels[start:stop], size, seed)
