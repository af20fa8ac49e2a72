"""Features that images are compared by: of a small classifier whose weights are in the package, or of Inception where it is installed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from proxyprune.diffusion.data.image_data import to_float
from proxyprune.errors import DataError, UnknownNameError, WeightsError

FEATURES = 64
WEIGHTS = Path(__file__).parent / "weights"
_INCEPTION_IMAGES = 50  # at a time: it resizes them to 299 pixels


class FeatureNet(nn.Module):
    """Three convolutional stages and a layer of 64 features before the classes; the features are what metrics see.

    Trained by benchmarks/train_features.py, which also records the accuracy.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96), classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        first, second, third = widths
        self.stages = nn.Sequential(
            _block(channels, first),
            _block(first, first),
            nn.MaxPool2d(2),
            _block(first, second),
            nn.MaxPool2d(2),
            _block(second, third),
        )
        self.features = nn.Linear(third * 4, FEATURES)
        self.classes = nn.Linear(FEATURES, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features [images, 64] of images in [-1, 1]."""
        pooled = functional.adaptive_avg_pool2d(self.stages(images), 2).flatten(1)
        return functional.relu(self.features(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [images, classes]."""
        logits: Tensor = self.classes(functional.dropout(self.embed(images), 0.3, self.training))
        return logits


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


SIZES: Mapping[str, tuple[int, tuple[int, int, int]]] = {"fashion-mnist": (28, (32, 64, 96)), "digits": (8, (16, 32, 48))}
"""Data set -> pixels that its classifier sees, and its widths. Other sizes are resized to it (bilinear, antialiased)."""


@dataclass(frozen=True)
class Features:
    """A map from images to vectors.

    Attributes:
        name: What figures are labelled with.
        note: What a reader of the figures has to know, or an empty string.
    """

    name: str
    _embed: Callable[[Tensor], Tensor] = field(repr=False)
    note: str = ""

    def of(self, images: Tensor, batch_size: int = 250) -> NDArray[np.float64]:
        """Features [images, D] of bytes [images, channels, height, width].

        Raises:
            DataError: If images are something else.
        """
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise DataError(
                f"Expected a tensor of bytes (torch.uint8) [images, channels, height, width] with 1 or 3 channels, found {found}. "
                "Scale pixels to 0 ... 255 first."
            )
        with torch.inference_mode():
            parts = [self._embed(images[start : start + batch_size]).double() for start in range(0, len(images), batch_size)]
        return np.asarray(torch.cat(parts).numpy())


def load_features(name: str) -> Features:
    """Features by name: "fashion-mnist", "digits", or "inception".

    Inception needs torch-fidelity, which downloads the weights; "inception:FILE" names them where they are already.

    Raises:
        UnknownNameError: If there are none of this name.
        WeightsError: If weights are missing.
    """
    kind, _, path = name.partition(":")
    if kind == "inception":
        return Features("inception-v3-compat (torch-fidelity)", _inception(Path(path) if path else None))
    if name not in SIZES:
        raise UnknownNameError(
            f"There are no features {name!r}: those of {', '.join(SIZES)} are part of the package. Use one of them, inception (needs "
            "torch-fidelity), or trained, for features that are trained on the images (--features)."
        )
    size, widths = SIZES[name]
    network = FeatureNet(widths)
    load_into(network, WEIGHTS / f"{name}.safetensors")
    network.eval()

    def embed(images: Tensor) -> Tensor:
        return network.embed(resized(to_float(_grey(images)), size))

    return Features(f"proxyprune-{name}-{FEATURES}", embed)


def load_into(network: nn.Module, path: Path) -> None:
    """Fill a network from a safetensors file; half precision is widened."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"The weights {path.name} of the features are missing from {path.parent}; install the package again.")
    network.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()})


def resized(images: Tensor, size: int) -> Tensor:
    """Square images at the classifier's size."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def _grey(images: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)


def _inception(weights: Path | None) -> Callable[[Tensor], Tensor]:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UnknownNameError(f"Inception features need torch-fidelity ({error}): pip install torch-fidelity.") from error
    if weights is not None and not weights.is_file():
        raise WeightsError(f"The weights of Inception are not at '{weights}'. torch-fidelity's releases have them as a .pth file.")
    try:
        network: Any = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], None if weights is None else _plain(weights))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = "it holds something else than tensors." if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        raise WeightsError(
            f"The weights of Inception cannot be {'fetched' if weights is None else 'read'}: {reason} Download the "
            ".pth file of torch-fidelity's releases and name it: --features inception:FILE."
        ) from error

    def embed(images: Tensor) -> Tensor:
        colour = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        return torch.cat([network(part)[0] for part in torch.split(colour, _INCEPTION_IMAGES)])

    return embed


def _plain(path: Path) -> str:
    """Return the path of a file that holds tensors and nothing that unpickling would run; torch-fidelity itself unpickles anything."""
    torch.load(path, map_location="cpu", weights_only=True)
    return str(path)
