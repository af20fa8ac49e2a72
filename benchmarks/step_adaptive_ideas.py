"""Pilots of the step-adaptive experiment: other settings, one seed that is none of the experiment's, fewer images, one sampler.

python benchmarks/step_adaptive_ideas.py --idea v_prediction --folder FOLDER
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import step_adaptive
import torch
from common import environment, save
from step_adaptive import ARMS, Bench, Experiment

IDEAS: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "v_prediction": {"noise.prediction": "v_prediction"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idea", choices=list(IDEAS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["base", "formula_80"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = Experiment()
    experiment = replace(plain, images=5000, samplers=plain.samplers[:1], common=dict(plain.common) | IDEAS[arguments.idea])
    bench = Bench(experiment, arguments.folder / arguments.idea)
    bench.folder.mkdir(parents=True, exist_ok=True)
    (bench.folder / "network.json").write_text(json.dumps(dict(step_adaptive.NETWORK)), encoding="utf-8")
    (bench.folder / "experiment.json").write_text(json.dumps(asdict(experiment), indent=1), encoding="utf-8")
    for arm in arguments.arms:
        bench.arm(arm, arguments.seed)
    found = {idea: Bench(experiment, arguments.folder / idea).lines() for idea in IDEAS}
    save("step_adaptive_ideas", {"environment": environment(), "ideas": IDEAS, "experiment": asdict(plain), "runs": found})


if __name__ == "__main__":
    main()
