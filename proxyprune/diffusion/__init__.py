"""Step-adaptive diffusion: one denoiser for all timesteps, then a pruned, fine-tuned one for each interval of them.

from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptivePipeline, StepAdaptiveTrainer

StepAdaptiveTrainer(StepAdaptiveConfig.preset("digits"), "run").train()
images = StepAdaptivePipeline.from_pretrained("run/pipeline")(batch_size=16).images
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from proxyprune.extras import explained

if TYPE_CHECKING:
    from proxyprune.diffusion.config import StepAdaptiveConfig
    from proxyprune.diffusion.intervals import Interval, Intervals
    from proxyprune.diffusion.ledger import Ledger
    from proxyprune.diffusion.pipeline import StepAdaptivePipeline
    from proxyprune.diffusion.schedule import NoiseSchedule
    from proxyprune.diffusion.trainer import StepAdaptiveTrainer

_HOMES = {
    "StepAdaptiveConfig": "config",
    "StepAdaptiveTrainer": "trainer",
    "StepAdaptivePipeline": "pipeline",
    "NoiseSchedule": "schedule",
    "Interval": "intervals",
    "Intervals": "intervals",
    "Ledger": "ledger",
}
"""Public name -> module; imported on first use, so that importing the package loads neither torch nor diffusers."""

__all__ = ["Interval", "Intervals", "Ledger", "NoiseSchedule", "StepAdaptiveConfig", "StepAdaptivePipeline", "StepAdaptiveTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'proxyprune.diffusion' has no attribute {name!r}")
    with explained(f"proxyprune.diffusion.{name}"):
        value = getattr(import_module(f"proxyprune.diffusion.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
