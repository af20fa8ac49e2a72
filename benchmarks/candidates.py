"""A published network with random weights and small inputs, as `supported_networks.py` tries it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = tuple[Any, ...] | dict[str, Any]
BUILD_SEED = 20
INPUT_SEED = 21


@dataclass(frozen=True)
class Candidate:
    """One network to try.

    Attributes:
        set: Name of the set it belongs to.
        name: Unique within the set.
        make: Builds the module.
        feed: Makes example inputs, batch of 1: a tuple of arguments or a dict of named ones. Receives the module.
        generates: True for causal language models, whose greedy tokens are compared.
    """

    set: str
    name: str
    make: Callable[[], nn.Module]
    feed: Callable[[nn.Module], Inputs]
    generates: bool = False

    @property
    def key(self) -> str:
        """Name that is unique over all sets."""
        return f"{self.set}/{self.name}"

    def build(self, seed: int = BUILD_SEED) -> nn.Module:
        """Build the network in evaluation mode, with weights from the seed."""
        torch.manual_seed(seed)
        return self.make().eval()

    def inputs(self, model: nn.Module) -> Inputs:
        """Make example inputs from a fixed seed."""
        torch.manual_seed(INPUT_SEED)
        return self.feed(model)


def images(size: int, channels: int = 3, frames: int = 0) -> Callable[[nn.Module], Inputs]:
    """Return a maker of one square image, [1, channels, size, size], or of one video, [1, channels, frames, size, size]."""
    shape = (1, channels, frames, size, size) if frames else (1, channels, size, size)
    return lambda model: (torch.randn(shape),)
