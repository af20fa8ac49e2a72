"""Images out: grids as PNG, arrays as npz."""

from __future__ import annotations

import math
import os
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


def check_places(picture: Path | None, arrays: Path | None) -> None:
    """Refuse places that nothing can be written to, before any image is drawn for them.

    Raises:
        StorageError: If a picture has an ending that Pillow cannot write, a file is in the place of a folder, or the other way round.
    """
    from PIL import Image

    if picture is not None and Image.registered_extensions().get(picture.suffix.lower()) not in Image.SAVE:
        raise StorageError(
            f"A picture cannot be written as '{picture.name}': its ending '{picture.suffix}' is not a picture format. Use .png."
        )
    for path in (picture, arrays):
        if path is None:
            continue
        if path.is_dir():
            raise StorageError(f"{path} cannot be written: it is a folder. Name a file.")
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise StorageError(f"{path} cannot be written: '{above}' is not a writable folder. Choose another place.")


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
        with path.open("wb") as file:  # given a name, numpy would add its own ending
            np.savez_compressed(file, images=images.permute(0, 2, 3, 1).cpu().numpy())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.") from error
    return path
