"""Images out: grids as PNG, arrays as npz."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from proxyprune.errors import StorageError


def grid(images: Tensor, columns: int | None = None, scale: int = 1) -> Tensor:
    """One picture [channels, height, width] of bytes [images, channels, height, width], with a line between them."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    picture = images.new_full((channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 128)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + 1) + 1, (place % columns) * (width + 1) + 1
        picture[:, top : top + height, left : left + width] = image
    return picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def beside(pictures: Sequence[Tensor], gap: int = 12) -> Tensor:
    """Pictures of one height side by side, white between them."""
    channels, height = pictures[0].shape[:2]
    parts: list[Tensor] = []
    for picture in pictures:
        parts += [picture, pictures[0].new_full((channels, height, gap), 255)]
    import torch

    return torch.cat(parts[:-1], dim=2)


def save_picture(picture: Tensor, path: Path) -> Path:
    """Write [channels, height, width] bytes as a picture.

    Raises:
        StorageError: If that fails.
    """
    from PIL import Image

    pixels = picture.cpu().numpy()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"The picture {path} cannot be written: {error}.") from error
    return path


def save_arrays(images: Tensor, path: Path) -> Path:
    """Write `images` [images, height, width, channels] of bytes as npz, as other tools of the field read them.

    Raises:
        StorageError: If that fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, images=images.permute(0, 2, 3, 1).cpu().numpy())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.") from error
    return path
