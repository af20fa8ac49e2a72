"""What a reader of the documentation has: a folder with files, and the Python names that a page says are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_model
from torch import Tensor, nn

from proxyprune.modelfile import load_model_file

ROOT = Path(__file__).parents[2]
CHECKOUT = ("examples", "benchmarks", "plugins")
"""Folders of the checkout that commands name."""

_NETWORK = """
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class MyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList([Residual(16) for _ in range(3)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def build_model():
    return MyNetwork()


def example_inputs():
    return torch.zeros(1, 3, 8, 8)


def calibration_batches():
    return [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def loss(model, batch):
    return model(batch).square().mean()
"""
_DENOISER = """
import torch
from torch import nn


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.middle = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.leave, self.time = nn.Conv2d(16, 1, 3, padding=1), nn.Linear(1, 16)

    def forward(self, sample, timestep):
        time = self.time(timestep.float().reshape(-1, 1) / 1000)
        x = (self.enter(sample) + time[:, :, None, None]).relu()
        return self.leave(x + self.middle(x).relu())


def build_model():
    return Denoiser()


def example_inputs():
    return {"sample": torch.zeros(1, 1, 8, 8), "timestep": torch.zeros(1, dtype=torch.long)}
"""


def settle(folder: Path) -> None:
    """Fill a folder with the files that pages name: model files, weights, images, and the checkout's own folders."""
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    for name in ("net.py", "unet.py", "big.py", "my_package.py"):
        (folder / name).write_text(_NETWORK, encoding="utf-8")
    (folder / "my_unet.py").write_text(_DENOISER, encoding="utf-8")
    for name in ("unet", "big"):
        save_model(load_model_file(f"{folder / name}.py").build_model(), str(folder / f"{name}.safetensors"))
    random = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=random.integers(0, 256, (64, 8, 8), dtype=np.uint8))
    (folder / "photos").mkdir()
    for index in range(40):
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / "photos" / f"{index}.png")


def _build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def _batches(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 6, generator=generator) for _ in range(2)]


def _trained() -> dict[str, Any]:
    """Return a model in the middle of its training, with its optimizer and a moving average of its weights."""
    model = _build_model()
    optimizer = torch.optim.AdamW(model.parameters())
    _loss(model, _batches(0)[0]).backward()
    optimizer.step()
    shadow = {name: value.clone() for name, value in model.state_dict().items()}
    return {"model": model, "optimizer": optimizer, "shadow": shadow, "adapter": _adapter(model)}


def _adapter(model: nn.Module) -> dict[str, Tensor]:
    """Return a LoRA adapter of rank 2 for the linear layers of a model, as PEFT saves it."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    shapes = {f"{name}.lora_A": (2, layer.in_features) for name, layer in layers.items()}
    shapes |= {f"{name}.lora_B": (layer.out_features, 2) for name, layer in layers.items()}
    return {f"base_model.model.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}


GIVEN: dict[str, Callable[[], Any]] = {
    "build_model": lambda: _build_model,
    "example_inputs": lambda: torch.zeros(1, 6),
    "batches": lambda: _batches(0),
    "held_out": lambda: _batches(1),
    "test_set": lambda: _batches(2),
    "loss": lambda: _loss,
    "loss_fn": lambda: _loss,
    "accuracy": lambda: lambda model, batches: float(torch.stack([_loss(model, batch) for batch in batches]).mean()),
}
"""Name -> what makes its value; `model`, `optimizer`, `shadow` and `adapter` belong together and come from one training."""


def given(names: list[str]) -> dict[str, Any]:
    """Values for the names that a page says its reader has."""
    trained = _trained()
    return {name: trained[name] if name in trained else GIVEN[name]() for name in names}
