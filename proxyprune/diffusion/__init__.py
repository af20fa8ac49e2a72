"""Step-adaptive diffusion: one denoiser for all timesteps, then a pruned, fine-tuned one for each interval of them.

from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptivePipeline, StepAdaptiveTrainer

StepAdaptiveTrainer(StepAdaptiveConfig.preset("digits"), "run").train()
images = StepAdaptivePipeline.from_pretrained("run/pipeline")(batch_size=16).images
"""

from __future__ import annotations

from typing import Any

import lazy_loader

from proxyprune.support.extras import explained

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explained(f"{__name__}.{name}"):
        return _attribute(name)
