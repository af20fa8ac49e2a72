"""Whether a gain over the base is only the sampler's fault: base and experts, begun at other noise levels, clipped and not.

    python benchmarks/step_adaptive_starts.py --runs FOLDER/seed-0 --arms base measured_80

FOLDER is the one of step_adaptive.py; the arms must be finished there. A network that predicts noise is weakest at the highest noise, so
a sampler that begins too far out spoils the base more than the experts. One seed, fewer images than the experiment's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save

from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptivePipeline, load_features
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.diffusion.evaluation.metrics import frechet_distance
from proxyprune.diffusion.sampling.schedulers import DB_OF_LAMBDA

STARTS = (-44.0, -31.0, -26.0, -22.0, -18.0)
"""Signal-to-noise ratio in dB of the first step; the pipeline's own is -31."""
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of one seed")
    parser.add_argument("--arms", nargs="+", default=["base", "measured_80"])
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(StepAdaptiveConfig.from_json(arguments.runs / arguments.arms[0] / "config.json").data)
    features = load_features("fashion-mnist")
    reference = features.of(data.held_out)
    rows: list[dict[str, Any]] = []
    for start in STARTS:
        for clip in (False, True):
            row: dict[str, Any] = {"start": start, "clipped": clip}
            for arm in arguments.arms:
                pipeline = StepAdaptivePipeline.from_pretrained(arguments.runs / arm / "pipeline").use("dpm++")
                pipeline.scheduler = begun(pipeline.scheduler, start, clip)
                images = pipeline.generate(arguments.images, steps=STEPS, batch_size=250, seed=1)
                row[arm] = frechet_distance(reference, features.of(images))
            rows.append(row)
            print(row, flush=True)
    print_table("DPM-Solver++, 20 steps, by its start", list(rows[0]), rows)
    save("step_adaptive_starts", {"environment": environment(), "images": arguments.images, "steps": STEPS, "rows": rows})


def begun(scheduler: Any, start_db: float, clip: bool) -> Any:
    """Return the scheduler with another start, by named settings only: `from_config` drops those that were left at their defaults."""
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    settings |= {"lambda_min_clipped": start_db / DB_OF_LAMBDA, "thresholding": clip, "sample_max_value": 1.0}
    return type(scheduler)(**settings)


if __name__ == "__main__":
    main()
