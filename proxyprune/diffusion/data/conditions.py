"""Conditions for sampling: labels or embeddings from a file, as many as there are images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from proxyprune.diffusion.data.image_data import read_npz
from proxyprune.errors import DataError

NAMES = ("embeddings", "labels", "y")


def read_condition(path: Path) -> Tensor:
    """Labels [n] (int64) or embeddings [n, ...] (float32) from an npz file.

    Raises:
        DataError: If there are none in it.
    """
    arrays = read_npz(path)
    values = next((arrays[name] for name in NAMES if name in arrays), None)
    if values is None or not values.ndim or not len(values):
        raise DataError(f"{path} must hold an array {' or '.join(NAMES)} with at least one entry, found {sorted(arrays)}.")
    condition = torch.from_numpy(values)
    return condition.float() if condition.is_floating_point() else condition.long()


def repeated(condition: Tensor, count: int) -> Tensor:
    """Return the first `count` conditions, from the start again when there are fewer."""
    return condition[torch.arange(count) % len(condition)]
