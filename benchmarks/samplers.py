"""Where samplers begin and what they clip: as diffusers has it by default, and as the pipeline has it.

    python benchmarks/samplers.py --noise RUN/pipeline --v RUN/pipeline

RUN is a run of step_adaptive.py (arm base), whose network predicts noise, or v with --prediction v_prediction.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, print_table, save
from diffusers import DDIMScheduler

from proxyprune.diffusion import DataConfig, StepAdaptivePipeline, load_features
from proxyprune.diffusion.data.image_data import ImageData, load_data
from proxyprune.diffusion.evaluation.metrics import frechet_distance

_NONE = -math.inf
MODES: tuple[tuple[str, int, str, Mapping[str, Any], bool], ...] = (
    ("ddim", 50, "diffusers' default: clipped, noise kept", {"clip_sample": True, "timestep_spacing": "leading"}, False),
    ("ddim", 50, "clipped, noise made to fit", {"clip_sample": True, "timestep_spacing": "leading"}, True),
    ("ddim", 50, "not clipped, leading", {"clip_sample": False, "timestep_spacing": "leading"}, True),
    ("ddim", 50, "as the pipeline does", {}, True),
    ("dpm++", 20, "diffusers' default: not clipped, all timesteps", {"thresholding": False, "lambda_min_clipped": _NONE}, True),
    ("dpm++", 20, "clipped, from -44 dB", {"thresholding": True, "sample_max_value": 1.0, "lambda_min_clipped": -5.1}, True),
    ("dpm++", 20, "as the pipeline does", {}, True),
    ("ddpm", 100, "diffusers' default: clipped", {"clip_sample": True}, True),
    ("ddpm", 100, "as the pipeline does", {}, True),
)
"""Sampler, steps, what it does, the scheduler's settings, and whether DDIM's noise fits its clipped estimate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--noise", type=Path, help="pipeline of a network that predicts noise")
    parser.add_argument("--v", type=Path, help="pipeline of a network that predicts v")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(DataConfig(source="fashion-mnist", size=16))
    distance = _distance(data)
    rows = _kept(arguments)
    for predicts, folder in (("noise", arguments.noise), ("v", arguments.v)):
        for name, steps, what, settings, fits in MODES if folder is not None else ():
            pipeline = StepAdaptivePipeline.from_pretrained(folder).use(name)
            pipeline.scheduler.register_to_config(**settings)
            with _noise_of_the_clipped_estimate(fits):
                images = pipeline.generate(arguments.images, steps=steps, batch_size=100, seed=1)
            row = {"network predicts": predicts, "sampler": f"{name} {steps}", "what": what}
            rows.append(row | {"FD": distance(images), "brightness": float(images.float().mean())})
            print(rows[-1], flush=True)
    print_table("Where samplers begin and what they clip", list(rows[0]), rows)
    real = distance(data.train[: arguments.images])
    save("samplers", {"environment": environment(), "images": arguments.images, "real_images": real, "rows": rows})


def _kept(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what was measured before of a network that is not given this time."""
    path = RESULTS / "samplers.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [row for row in before if getattr(arguments, row["network predicts"]) is None]


def _distance(data: ImageData) -> Callable[[torch.Tensor], float]:
    features = load_features("fashion-mnist")
    reference = features.of(data.held_out)
    return lambda images: frechet_distance(reference, features.of(images))


@contextmanager
def _noise_of_the_clipped_estimate(fits: bool) -> Iterator[None]:
    """Without `fits`, DDIM steps as it does when it is asked for nothing more: with the noise of the unclipped estimate."""
    step: Any = DDIMScheduler.step
    if not fits:
        DDIMScheduler.step = lambda scheduler, predicted, time, images: step(scheduler, predicted, time, images)
    try:
        yield
    finally:
        DDIMScheduler.step = step


if __name__ == "__main__":
    main()
