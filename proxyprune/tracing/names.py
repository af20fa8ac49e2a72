"""Qualified names of modules, parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_inside(name: str, module: str) -> bool:
    """Return True if a module, parameter or buffer is the given module or lies inside it; everything lies inside "", the model."""
    return not module or name == module or name.startswith(f"{module}.")


def named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, shared ones by each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
