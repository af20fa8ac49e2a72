"""Do caches of diffusers combine with step-adaptive experts? Distance and time at several thresholds, against fewer steps.

    python benchmarks/caches.py                        # three seeds of the preset digits-dit; about half an hour on one core
    python benchmarks/caches.py --seeds 0 --steps 10   # one seed, one number of steps

`FirstBlockCache` computes the first transformer block of every step, and the others only if the first block's residual differs from that
of the last full step by more than a threshold. Runs resume from --folder. Times are processor time of one thread, variants in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor

from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptivePipeline, StepAdaptiveTrainer, load_features
from proxyprune.diffusion.evaluation.metrics import frechet_distance

THRESHOLDS = (0.0, 0.05, 0.1, 0.2)
IMAGES = 2000
BATCH = 250
ROUNDS = 5


def trained(folder: Path, seed: int, target: float) -> tuple[StepAdaptivePipeline, Tensor]:
    """Train the preset, or load the finished run; also return the images held out."""
    config = StepAdaptiveConfig.preset("digits-dit").with_values({"seed": seed, "budgets.target": target, "run.cpu": True})
    trainer = StepAdaptiveTrainer(config, folder / f"seed-{seed}")
    return trainer.train(), trainer.setup.data.held_out


def cached(pipeline: StepAdaptivePipeline, threshold: float) -> StepAdaptivePipeline:
    """Return the pipeline with this threshold; 0 removes the cache."""
    pipeline.disable_cache()
    return pipeline.enable_cache(FirstBlockCacheConfig(threshold=threshold)) if threshold else pipeline


def computed(pipeline: StepAdaptivePipeline, steps: int) -> tuple[Tensor, float]:
    """Draw the images that are judged; also return the share of steps that computed all blocks."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    lasts = [pipeline.experts[index].transformer_blocks[-1].attn1 for index in range(len(pipeline.experts))]  # type: ignore[union-attr, index]  # experts of this preset are DiTs
    hooks = [last.register_forward_pre_hook(count) for last in lasts]
    images = pipeline.generate(IMAGES, steps=steps, batch_size=BATCH, progress=False)
    for hook in hooks:
        hook.remove()
    return images, calls / (steps * (IMAGES // BATCH))


def seconds(pipeline: StepAdaptivePipeline, variants: list[tuple[int, float]]) -> dict[tuple[int, float], float]:
    """Return processor seconds of one batch for each number of steps and threshold: medians, measured in turns."""
    found: dict[tuple[int, float], list[float]] = {variant: [] for variant in variants}
    for _ in range(ROUNDS):
        for steps, threshold in variants:
            cached(pipeline, threshold)
            started = time.thread_time()
            pipeline.generate(BATCH, steps=steps, batch_size=BATCH, progress=False)
            found[steps, threshold].append(time.thread_time() - started)
    return {variant: statistics.median(times) for variant, times in found.items()}


def judge(pipeline: StepAdaptivePipeline, held_out: Tensor, seed: int, steps: list[int]) -> list[dict[str, Any]]:
    """Return a row for each number of steps and threshold."""
    features = load_features("digits")
    real = features.of(held_out)
    variants = [(count, threshold) for count in steps for threshold in THRESHOLDS]
    times = seconds(pipeline, variants)
    rows = []
    for count, threshold in variants:
        images, share = computed(cached(pipeline, threshold), count)
        rows.append(
            {
                "seed": seed,
                "steps": count,
                "threshold": threshold,
                "frechet": frechet_distance(real, features.of(images)),
                "full steps": share * count,
                "time": times[count, threshold] / times[steps[-1], 0.0],
            }
        )
        print(rows[-1], flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over seeds, and the highest minus the lowest distance."""
    found = []
    for steps, threshold in dict.fromkeys((row["steps"], row["threshold"]) for row in rows):
        own = [row for row in rows if (row["steps"], row["threshold"]) == (steps, threshold)]
        distances = [row["frechet"] for row in own]
        found.append(
            {
                "steps": steps,
                "threshold": threshold,
                "frechet": statistics.mean(distances),
                "spread": max(distances) - min(distances),
                "full steps": statistics.mean(row["full steps"] for row in own),
                "time": statistics.mean(row["time"] for row in own),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 10, 20], help="of DPM-Solver++; times are shares of the last")
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / ".cache" / "caches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        pipeline, held_out = trained(arguments.folder, seed, arguments.target)
        rows += judge(pipeline.use("dpm++"), held_out, seed, arguments.steps)
    table = summary(rows)
    print_table("FirstBlockCache on step-adaptive experts", list(table[0]), table)
    save(
        "caches",
        {
            "environment": environment(),
            "preset": "digits-dit",
            "target": arguments.target,
            "images": IMAGES,
            "summary": table,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
