"""A pipeline of small networks with random weights."""

from __future__ import annotations

import diffusers
import torch
from diffusion_runs import NETWORK

from proxyprune.diffusion import NoiseConfig, NoiseSchedule, StepAdaptivePipeline
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.pipeline_record import Blueprint
from proxyprune.diffusion.sampling.schedulers import sampler

COSINE = NoiseConfig(schedule="squaredcos_cap_v2")
LINEAR = NoiseConfig(schedule="linear")


def pipeline(noise: NoiseConfig = COSINE, *, classes: int = 0, experts: int = 2) -> StepAdaptivePipeline:
    """Experts of random weights."""
    torch.manual_seed(0)
    record = {key: value for key, value in NETWORK.items() if key != "_class_name"} | ({"num_class_embeds": classes} if classes else {})
    models = [diffusers.UNet2DModel(**record).eval() for _ in range(experts)]
    held = Experts.of(models, [1000] * experts)
    intervals = equal_db(NoiseSchedule.of(noise), experts)
    calling = Calling("sample", "timestep", "class_labels" if classes else None)
    network = {"class": "UNet2DModel", "config": record}
    blueprint = Blueprint(intervals, calling, (1, 8, 8), classes, held.macs, held.params, 1000, network)
    found = StepAdaptivePipeline(held, blueprint, sampler("ddim", training_scheduler(noise)))
    found._trained_with = training_scheduler(noise)
    return found
