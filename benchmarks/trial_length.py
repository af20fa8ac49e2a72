"""What measured budgets read off short trials, against the damage that is left when experts are trained.

    python benchmarks/trial_length.py --seeds 0 1 2                               # network of step_adaptive.py, predicting noise
    python benchmarks/trial_length.py --seeds 0 1 2 --prediction v_prediction

Trials of several lengths decide budgets for an expert's own length, and for the trial's (which is what budgets would be if cuts did not
heal any further). Both are judged with the damage that the arms of step_adaptive.py have in the end, from its committed JSON: held-out loss
by interval against full-size experts, all arms and seeds together. Only trials are trained; a base that is not in the folder yet, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, environment, print_table, save
from step_adaptive import ARMS, CACHE, FOR_V, Bench, Experiment

from proxyprune.diffusion import DamageRecovery, Intervals, Measurement
from proxyprune.diffusion.records import read_weights
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.budgets import by_formula, by_measurement
from proxyprune.diffusion.stages.layout import choose_intervals, decide
from proxyprune.diffusion.stages.recovery import TriedSize, fit_recovery
from proxyprune.diffusion.training.make_accelerator import make_accelerator

NAME = "trial_length"
TARGETS = {"measured_80": 0.79, "measured_50": 0.49}
FINISHED = ("formula_80", "formula_80_noisy", "formula_50", "measured_80", "measured_80_step", "measured_50")
"""Arms that differ from full-size experts in their sizes, and where they are measured in what the trials took from their training."""


def final_losses(run: Mapping[str, Any], intervals: Intervals) -> list[float]:
    """Mean log of the held-out loss in each interval, over bins of timesteps."""
    decibels, losses = np.asarray(run["loss_by_snr"]).T
    where = intervals.interval_of(decibels)
    return [float(np.log(losses[where == index]).mean()) for index in range(len(intervals))]


def final_damage(runs: Sequence[Mapping[str, Any]], intervals: Intervals) -> DamageRecovery:
    """Damage by size and interval once experts are trained: one model through all finished arms."""
    first = {(run["arm"], run["seed"]): run for run in reversed(runs)}
    sizes: list[list[TriedSize]] = [[] for _ in range(len(intervals))]
    for (arm, seed), run in first.items():
        if arm in FINISHED:
            whole = final_losses(first["experts_full", seed], intervals)
            for found, fraction, loss, reference in zip(sizes, run["budgets"], final_losses(run, intervals), whole, strict=True):
                if fraction < 1.0:
                    found.append(TriedSize(fraction, (loss - reference,)))
    return fit_recovery(sizes, (1,))


def measure(experiment: Experiment, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Trials of one length and the budgets that follow."""
    bench = Bench(experiment, folder, {"budgets.trial_steps": steps})
    weights = read_weights(RunFolder(Bench(experiment, folder).shared_base(seed)).base.weights)
    config = bench.config(ARMS["measured_50"], seed)
    setup = Setup.of(config, make_accelerator(config, RunFolder(folder)))
    layout = decide(setup, weights)
    if layout.measured is None:
        raise RuntimeError("The arm measures nothing.")
    return {
        "seed": seed,
        "trial_steps": steps,
        "compute": layout.ledger.spent_macs / setup.limit_macs,
        "sampler_steps": list(layout.budgets.steps),
        "base_macs": setup.base_macs,
        "measured": layout.measured.to_dict(),
    }


def budgets(run: Mapping[str, Any], target: float, at_trial_length: bool) -> tuple[float, ...]:
    """Return what a run's trials say, for experts or for training of no more than their own length."""
    measured = Measurement.from_dict(run["measured"])
    if at_trial_length:
        measured = replace(measured, expert_steps=(float(measured.lengths[-1]),) * len(measured.sizes))
    options = [measured.options(index, run["base_macs"]) for index in range(len(measured.sizes))]
    return by_measurement(options, run["sampler_steps"], target, run["base_macs"]).fractions


def judged(runs: Sequence[Mapping[str, Any]], truth: DamageRecovery) -> list[dict[str, Any]]:
    """Return a row for each length and target: what the budgets lose against the best ones, in percent of the loss, mean over intervals."""

    def lost(fractions: Sequence[float]) -> float:
        return 100.0 * statistics.fmean(truth.damage(index, fraction, 1) for index, fraction in enumerate(fractions))

    rows = []
    for target in TARGETS.values():
        known = replace(Measurement.from_dict(runs[0]["measured"]), recovery=truth, expert_steps=(1.0,) * len(truth.levels))
        options = [known.options(index, runs[0]["base_macs"]) for index in range(len(truth.levels))]
        best = lost(by_measurement(options, runs[0]["sampler_steps"], target, runs[0]["base_macs"]).fractions)
        published = by_formula(target, runs[0]["sampler_steps"]).fractions
        rows.append({"target": target, "budgets": "best", "lost": best, "of all compute": 0.0})
        rows.append({"target": target, "budgets": "formula", "lost": lost(published), "of all compute": 0.0})
        rows.append({"target": target, "budgets": "even", "lost": lost((target,) * len(truth.levels)), "of all compute": 0.0})
        for steps in sorted({run["trial_steps"] for run in runs}):
            mine = [run for run in runs if run["trial_steps"] == steps]
            compute = statistics.fmean(run["compute"] for run in mine)
            for name, own in (("for the expert's length", False), ("for the trial's length", True)):
                found = [budgets(run, target, own) for run in mine]
                row = {"target": target, "budgets": f"trials of {steps}, {name}", "of all compute": compute}
                rows.append(row | {"lost": statistics.fmean(map(lost, found)), "by seed": [list(each) for each in found]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 80], help="steps of a trial of the whole network")
    parser.add_argument("--prediction", choices=["epsilon", "v_prediction"], default="epsilon")
    parser.add_argument("--folder", type=Path, help="of step_adaptive.py, for its bases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment, suffix = Experiment(), "" if arguments.prediction == "epsilon" else "_v"
    if suffix:
        experiment = replace(experiment, common=dict(experiment.common) | {"noise.prediction": "v_prediction"} | dict(FOR_V))
    folder = arguments.folder or CACHE.with_name(CACHE.name + suffix)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.json").write_text(json.dumps(Bench(experiment, folder).network), encoding="utf-8")
    place, name = RESULTS / f"{NAME}{suffix}.json", NAME + suffix
    runs = json.loads(place.read_text(encoding="utf-8"))["runs"] if place.is_file() else []
    finished = json.loads((RESULTS / f"step_adaptive{suffix}.json").read_text(encoding="utf-8"))["runs"]
    truth = final_damage(finished, choose_intervals(Setup.of(Bench(experiment, folder).config(ARMS["formula_80"], 0)), None)[0])
    for seed in arguments.seeds:
        for steps in arguments.steps:
            if not any((run["seed"], run["trial_steps"]) == (seed, steps) for run in runs):
                runs.append(measure(experiment, folder, seed, steps))
            written = {"environment": environment(), "experiment": asdict(experiment), "final_damage": truth.to_dict()}
            save(name, written | {"runs": runs, "rows": judged(runs, truth)})
    rows = [
        row | {"lost": f"{row['lost']:.2f} %", "of all compute": f"{row['of all compute']:.1%}", "target": f"{row['target']:.0%}"}
        for row in judged(runs, truth)
    ]
    columns = ["target", "budgets", "of all compute", "lost"]
    print_table("Mean damage once experts are trained", columns, [{key: row[key] for key in columns} for row in rows])


if __name__ == "__main__":
    main()
