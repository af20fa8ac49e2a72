"""Which interval matters: a full base with other networks in one interval at a time, then in all.

    python benchmarks/step_adaptive_swaps.py --base FOLDER/seed-0/base --other FOLDER/seed-0/formula_80 --label experts
    python benchmarks/step_adaptive_swaps.py --base FOLDER/seed-0/base --other WIDER/seed-0/base --label capacity

With the experts of an arm, this says which of them helps. With a base that is wider, it says where capacity is missing; the losses beside
it say by which of their differences one could have known: what the loss loses in absolute terms, or the logarithm of the ratio. One seed,
fewer images than the experiment's: this says where to look, not what is so. Labels that are in the JSON already keep their figures.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, print_table, save

from proxyprune.diffusion import NoiseSchedule, StepAdaptiveConfig, StepAdaptivePipeline, load_features
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.diffusion.evaluation.evaluate import held_out_losses
from proxyprune.diffusion.evaluation.metrics import frechet_distance
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.sampling.experts import Experts

NAME = "step_adaptive_swaps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="run of the full base")
    parser.add_argument("--other", type=Path, required=True, help="run whose networks take its place")
    parser.add_argument("--label", required=True, help="name in the JSON")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = StepAdaptiveConfig.from_json(arguments.base / "config.json")
    data, features, schedule = load_data(config.data), load_features("fashion-mnist"), NoiseSchedule.of(config.noise)
    whole = StepAdaptivePipeline.from_pretrained(arguments.base / "pipeline").experts
    pipeline = StepAdaptivePipeline.from_pretrained(arguments.other / "pipeline").use(arguments.sampler)
    others = pipeline.experts
    if len(others) == 1:
        pipeline.blueprint = replace(pipeline.blueprint, intervals=equal_db(schedule, config.intervals.count, config.noise.clip_db))
    intervals = pipeline.blueprint.intervals
    count = len(intervals)
    base, other = [whole[0]] * count, [others[index % len(others)] for index in range(count)]
    macs = [others.macs[index % len(others)] for index in range(count)]
    judged = [held_out_losses(networks, intervals, pipeline.blueprint.calling, data, schedule, seed=0) for networks in (base, other)]
    reference = features.of(data.held_out)
    rows: list[dict[str, Any]] = []
    for swapped in (set(), *({index} for index in range(count)), set(range(count))):
        networks = [other[index] if index in swapped else base[index] for index in range(count)]
        pipeline.experts = Experts.of(networks, [macs[index] if index in swapped else whole.macs[0] for index in range(count)])
        images = pipeline.generate(arguments.images, steps=arguments.steps, batch_size=250, seed=1)
        row = {"other networks in": ", ".join(map(str, sorted(swapped))) or "none"}
        rows.append(row | {"FD": frechet_distance(reference, features.of(images)), "brightness": float(images.float().mean())})
        print(rows[-1], flush=True)
    for index, (before, after) in enumerate(zip(*judged, strict=True)):
        change = {"gain in FD": rows[0]["FD"] - rows[1 + index]["FD"], "loss": before, "loss of the other": after}
        rows[1 + index] |= change | {"difference": before - after, "log ratio": math.log(before / after)}
    print_table(arguments.label, list(rows[1]), [dict.fromkeys(rows[1], "") | row for row in rows])
    settings = {name: getattr(arguments, name) for name in ("images", "sampler", "steps")}
    params = {"base": whole.params[0], "other": list(others.params)}
    path = RESULTS / f"{NAME}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    save(NAME, earlier | {arguments.label: {"environment": environment(), **settings, "params": params, "rows": rows}})


if __name__ == "__main__":
    main()
