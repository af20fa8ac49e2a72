"""Which interval's expert helps: the full base with one expert at a time in its place, then all of them.

    python benchmarks/step_adaptive_swaps.py --runs FOLDER/seed-0 --arm formula_80

FOLDER is the one of step_adaptive.py; the arms base and --arm must be finished there. One seed, fewer images than the experiment's: this
says where to look, not what is so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import environment, print_table, save

from proxyprune.diffusion import StepAdaptivePipeline
from proxyprune.diffusion.config import StepAdaptiveConfig
from proxyprune.diffusion.data import load_data
from proxyprune.diffusion.experts import Experts
from proxyprune.diffusion.features import load_features
from proxyprune.diffusion.metrics import frechet_distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of one seed")
    parser.add_argument("--arm", default="formula_80")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = StepAdaptivePipeline.from_pretrained(arguments.runs / "base" / "pipeline").experts
    pipeline = StepAdaptivePipeline.from_pretrained(arguments.runs / arguments.arm / "pipeline").use(arguments.sampler)
    own, count = pipeline.experts, len(pipeline.experts)
    features = load_features("fashion-mnist")
    data = load_data(StepAdaptiveConfig.from_json(arguments.runs / "base" / "config.json").data)
    reference, rows = features.of(data.held_out), []
    for swapped in (set(), *({index} for index in range(count)), set(range(count))):
        chosen = [own if index in swapped else base for index in range(count)]
        place = [index if index in swapped else 0 for index in range(count)]
        pipeline.experts = Experts.of(
            [experts[at] for experts, at in zip(chosen, place, strict=True)], [e.macs[at] for e, at in zip(chosen, place, strict=True)]
        )
        images = pipeline.generate(arguments.images, steps=arguments.steps, batch_size=100, seed=1)
        row = {"experts": ", ".join(map(str, sorted(swapped))) or "none", "sampling": pipeline.relative_macs(arguments.steps)}
        rows.append(row | {"FD": frechet_distance(reference, features.of(images)), "brightness": float(images.float().mean())})
        print(rows[-1], flush=True)
    print_table(f"{arguments.arm}: experts in place of the base", list(rows[0]), rows)
    settings = {name: getattr(arguments, name) for name in ("arm", "images", "sampler", "steps")}
    save("step_adaptive_swaps", {"environment": environment(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
