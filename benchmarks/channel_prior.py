"""Measure `channels="taylor"`: recorded block scores of a frontier language model on Taylor's channels, with a weight that is chosen.

Each network of fashion.py is pruned to 0.4 of its MACs, with Taylor alone, with the recorded scores, and with the same scores handed to
other blocks. Scorers see eight batches, half of which choose the weight. The loss is that on test images that nothing has seen, right after
the cut and after 30 steps of recovery, as in compare_scorers.py.

    OMP_NUM_THREADS=1 python benchmarks/channel_prior.py --save
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import torch
from arms import shuffled
from common import RESULTS, environment, print_table, save
from compare_scorers import CALIBRATION, SEEDS, Setting
from fashion import SUBJECTS
from recorded_llm import FIGURES, RecordedLLM

import proxyprune as pp
from proxyprune.comparing.run_comparison import calibration_of
from proxyprune.comparing.values import Spread
from proxyprune.measuring.held_out import held_out_loss, recovered
from proxyprune.scoring import Scorer, find

TARGET = 0.4
_CHOSEN = re.compile(r"weigh on them with ([\d.]+),")


def arms(network: str) -> dict[str, Scorer]:
    """Taylor alone, the recorded scores, and their control."""
    recorded = RecordedLLM(network, FIGURES)
    return {"taylor alone": find("taylor", {}), recorded.name: recorded, f"{recorded.name}, shuffled": shuffled(recorded)}


def measured(setting: Setting, arm: str, scorer: Scorer, seed: int) -> dict[str, Any]:
    """Prune with one arm, and judge on the test images."""
    subject, data = setting.subject, setting.data
    result = pp.prune(
        setting.model,
        subject.example_inputs,
        TARGET,
        scorer,
        batches=calibration_of(data.batches, CALIBRATION, seed),
        loss_fn=data.loss_fn,
        seed=seed,
        channels="taylor",
    )
    chosen = [float(found[1]) for note in result.plan.notes if (found := _CHOSEN.search(note))]
    return {
        "network": subject.name,
        "arm": arm,
        "seed": seed,
        "weight": chosen[0] if chosen else None,
        "loss": held_out_loss(result.model, data, seed),
        "recovered": held_out_loss(recovered(result.model, data, setting.recovery, seed), data, seed),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each network and arm."""
    rows = []
    for network, arm in dict.fromkeys((run["network"], run["arm"]) for run in runs):
        own = [run for run in runs if (run["network"], run["arm"]) == (network, arm)]
        loss, after = (Spread.of(run[kind] for run in own) for kind in ("loss", "recovered"))
        if loss is not None and after is not None:
            spread = f"{after.low:.4f} to {after.high:.4f}"
            weights = ", ".join("-" if run["weight"] is None else f"{run['weight']:g}" for run in own)
            row = {"loss": round(loss.mean, 4), "recovered": round(after.mean, 4), "range": spread, "weights": weights}
            rows.append({"network": network, "arm": arm, **row})
    return rows


def main() -> None:
    """Run what is asked for, print a table, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--save", action="store_true", help=f"Write {RESULTS.name}/channel_prior.json.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for subject in (subject for subject in SUBJECTS if subject.name in options.networks):
        setting = Setting.of(subject)
        for seed in SEEDS:
            for arm, scorer in arms(subject.name).items():
                runs.append(measured(setting, arm, scorer, seed))
                print(runs[-1], flush=True)
    rows = summary(runs)
    print_table(f"Channels of taylor, {TARGET} of the MACs", list(rows[0]), rows)
    if options.save:
        save("channel_prior", {"target": TARGET, "runs": runs, "summary": rows} | environment())


if __name__ == "__main__":
    main()
