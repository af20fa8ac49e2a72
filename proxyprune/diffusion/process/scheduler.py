"""The part of diffusers' schedulers that is used here; diffusers itself ships no types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Scheduler(Protocol):
    """A scheduler of diffusers. What only some of them have (`alphas_cumprod`, `sigmas`, ...) is looked up with `hasattr`.

    Attributes:
        config: The settings that it was made with.
        timesteps: Of the steps, after `set_timesteps`.
    """

    config: Mapping[str, Any]
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the steps."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **extra: Any) -> Any:
        """Take one step; the result has the next sample as `prev_sample`."""

    def save_pretrained(self, save_directory: str) -> None:
        """Write the settings into a folder."""
