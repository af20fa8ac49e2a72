"""How long must the trials of measured budgets be? Damage by interval and the budgets that follow, for trials of several lengths.

    python benchmarks/trial_length.py --seeds 0 1 2 --folder FOLDER     # FOLDER of step_adaptive.py --prediction v_prediction

Predicting v, at half of the sampling compute. What the trials cost grows with their length, and nothing else is trained; a base that is not
in the folder yet is trained first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from common import RESULTS, environment, print_table, save
from step_adaptive import ARMS, CACHE, FOR_V, Bench, Experiment

from proxyprune.diffusion.checkpoint import read_weights
from proxyprune.diffusion.layout import decide
from proxyprune.diffusion.setup import Setup

ARM = "measured_50"
NAME = "trial_length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 67, 200], help="recovery steps of a trial of the whole network")
    parser.add_argument("--folder", type=Path, default=CACHE.with_name("step_adaptive_v"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment()
    experiment = replace(experiment, common=dict(experiment.common) | {"noise.prediction": "v_prediction"} | dict(FOR_V))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    network = arguments.folder / "network.json"
    network.write_text(json.dumps(Bench(experiment, arguments.folder).network), encoding="utf-8")
    place = RESULTS / f"{NAME}.json"
    runs = json.loads(place.read_text(encoding="utf-8"))["runs"] if place.is_file() else []
    for seed in arguments.seeds:
        for steps in arguments.steps:
            if any((run["seed"], run["trial_steps"]) == (seed, steps) for run in runs):
                continue
            bench = Bench(experiment, arguments.folder, {"budgets.trial_steps": steps})
            weights = read_weights(Bench(experiment, arguments.folder).shared_base(seed) / "base" / "base.safetensors")
            setup = Setup.of(bench.config(ARMS[ARM], seed))
            layout = decide(setup, weights)
            run = {"seed": seed, "trial_steps": steps, "budgets": list(layout.budgets.fractions)}
            run |= {"compute": layout.ledger.spent_macs / setup.limit_macs}
            run |= {"trials": [[asdict(option) for option in options] for options in layout.trials]}
            runs.append(run)
            save(NAME, {"environment": environment(), "experiment": asdict(experiment), "arm": ARM, "runs": runs})
    rows = [
        {"seed": run["seed"], "steps": run["trial_steps"], "of all compute": f"{run['compute']:.1%}"}
        | {f"interval {i}": f"{size:.3f}" for i, size in enumerate(run["budgets"])}
        | {
            f"damage {i} at {option['fraction']:g}": f"{option['damage']:+.3f}"
            for i, options in enumerate(run["trials"])
            for option in options[1:]
        }
        for run in sorted(runs, key=lambda run: (run["seed"], run["trial_steps"]))
    ]
    print_table("Trials of measured budgets, predicting v, half of the sampling compute", list(rows[0]), rows)


if __name__ == "__main__":
    main()
