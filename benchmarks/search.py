"""Does measuring proposals beat asking once? The U-Net denoiser of fashion.py, at 0.6 and 0.4 of its MACs.

Every proposer gets the same number of measurements, the same start (a one-shot Taylor ranking) and the same short recovery before each
measurement. The search sees calibration and held-out batches; the figures below are from a third split that nothing has seen, after a
longer recovery that is the same for all. Three seeds.

One proposer is a real, tiny language model with memory: SmolLM2-135M ranks the blocks again in every round and is told what all earlier
rankings cost. It is asked at --llm URL (see scripts/local_llm.py), or its answers are replayed from benchmarks/replies. A round in which it
gives no valid answer, even after it was told what is wrong, counts as a measurement without a result.

    OMP_NUM_THREADS=1 python benchmarks/search.py                                   # goes on where it was killed
    OMP_NUM_THREADS=1 python benchmarks/search.py --llm http://127.0.0.1:8080/v1    # asks the model what was not asked yet
    OMP_NUM_THREADS=1 python benchmarks/search.py --recorded                        # a frontier model's answers, into search_recorded.json

Answers of a frontier language model with memory were recorded for seeds 0 and 1 at 0.4. They are replayed round by round, with a control:
the same scores handed to other blocks. They answer losses of the day of the recording, which may differ from today's in the last digits.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from arms import local_llm
from common import RESULTS, environment, print_table, save
from fashion import CACHE, SUBJECTS, batches_of, trained
from matplotlib.figure import Figure
from recorded_llm import SEARCH, SEARCH_CONTROL, RecordedProposer

import proxyprune as pp
from proxyprune import Recovery
from proxyprune.comparing.values import Spread
from proxyprune.measuring.held_out import Data, held_out_loss, recovered
from proxyprune.measuring.journal import opened
from proxyprune.searching.proposers.scorer_proposer import ScorerProposer

SUBJECT = next(subject for subject in SUBJECTS if subject.name == "unet")
TARGETS = (0.6, 0.4)
SEEDS = (0, 1, 2)
LANGUAGE_MODEL = "local LLM with memory"
PROPOSERS = ("evolution", "coordinate", "random", LANGUAGE_MODEL)
RECORDED = ("evolution", SEARCH, SEARCH_CONTROL)
RECORDED_SEEDS = (0, 1)
RECORDED_TARGETS = (0.4,)
MEASUREMENTS = 12
SEARCH_RECOVERY = Recovery(10, SUBJECT.recovery_rate)
FINAL_RECOVERY = Recovery(40, SUBJECT.recovery_rate)
ONE_SHOT = "one-shot taylor"


def data_for(seed: int) -> tuple[Data, Data]:
    """Return data of a search, and data of the final judgement: the same batches to learn from, other batches to judge by."""
    learning = tuple(batches_of(SUBJECT, "train", 50_000 + 1024 * seed, 16, 32, seed=10 + seed))
    held_out = tuple(batches_of(SUBJECT, "train", 56_000 + 512 * seed, 2, 192, seed=20 + seed))
    untouched = tuple(batches_of(SUBJECT, "t10k", 5_000, 4, 256, seed=30))
    return Data(learning, held_out, SUBJECT.loss_fn), Data(learning, untouched, SUBJECT.loss_fn)


def proposer_of(name: str, seed: int, url: str | None) -> Any:
    """Return what `pp.search` takes."""
    if name in (SEARCH, SEARCH_CONTROL):
        return RecordedProposer(seed, control=name == SEARCH_CONTROL)
    if name == ONE_SHOT:
        return "random"  # with one measurement, nothing is proposed after the start
    return ScorerProposer(local_llm(url, real_names=False, samples=1), repeats=6) if name == LANGUAGE_MODEL else name


def run(proposer: str, target: float, seed: int, url: str | None) -> dict[str, Any]:
    """One search, and the judgement of what it found."""
    model = trained(SUBJECT)
    data, final = data_for(seed)
    started = time.perf_counter()
    result = pp.search(
        model,
        SUBJECT.example_inputs,
        target,
        proposer_of(proposer, seed, url),
        rounds=1 if proposer == ONE_SHOT else MEASUREMENTS,
        start="taylor",
        recovery=SEARCH_RECOVERY,
        memory=CACHE / f"search_{re.sub('[^a-z0-9]+', '_', proposer.lower())}_{target}_{seed}.jsonl",
        resume=True,
        batches=data.batches,
        held_out=data.held_out,
        loss_fn=data.loss_fn,
        seed=seed,
    )
    seconds = time.perf_counter() - started
    bare = pp.apply_plan(model, result.plan, SUBJECT.example_inputs)
    return {
        "proposer": proposer,
        "target": target,
        "seed": seed,
        "macs": result.plan.macs,
        "measurements": result.measurements,
        "duplicates": len(result.rounds) - result.measurements,
        "search_losses": [entry.loss for entry in result.rounds if entry.measured],
        "cut_loss": held_out_loss(bare, final, seed=0),
        "loss": held_out_loss(recovered(bare, final, FINAL_RECOVERY, seed), final, seed=0),
        "stopped": result.stopped,
        "seconds": seconds,
    }


def summary(runs: Sequence[Mapping[str, Any]], proposers: Sequence[str] = PROPOSERS) -> list[dict[str, Any]]:
    """One row for each target and proposer; gains are paired with the one-shot result of the same seed."""
    rows = []
    for target in TARGETS:
        one_shot = {run["seed"]: run["loss"] for run in runs if run["proposer"] == ONE_SHOT and run["target"] == target}
        for proposer in (ONE_SHOT, *proposers):
            own = [run for run in runs if run["proposer"] == proposer and run["target"] == target]
            gains = [one_shot[run["seed"]] - run["loss"] for run in own]
            loss, gain = Spread.of(run["loss"] for run in own), Spread.of(gains)
            if loss is None or gain is None:
                continue
            rows.append(
                {
                    "target": target,
                    "proposer": proposer,
                    "loss": loss.mean,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                    "gain": gain.mean,
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                    "seeds_won": f"{sum(value > 0 for value in gains)} of {len(gains)}",
                    "seconds": sum(run["seconds"] for run in own) / len(own),
                }
            )
    return rows


def plot(runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Left of each pair: best loss by measurement on the held-out split. Right: final loss on the untouched split."""
    colours = dict(zip((*PROPOSERS, ONE_SHOT), ("#0072B2", "#D55E00", "#999999", "#009E73", "#000000"), strict=True))
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 * len(TARGETS), gridspec_kw={"width_ratios": [1.4, 1] * len(TARGETS)})
    for index, target in enumerate(TARGETS):
        left, right = panels[2 * index], panels[2 * index + 1]
        for proposer in PROPOSERS:
            found = [run["search_losses"] for run in runs if run["proposer"] == proposer and run["target"] == target]
            curves = [[min(value for value in losses[: stop + 1] if value is not None) for stop in range(len(losses))] for losses in found]
            length = min(map(len, curves), default=0)
            for curve in curves:
                left.plot(range(1, len(curve) + 1), curve, color=colours[proposer], linewidth=0.7, alpha=0.35)
            mean = [sum(curve[place] for curve in curves) / len(curves) for place in range(length)]
            left.plot(range(1, length + 1), mean, color=colours[proposer], linewidth=2, label=proposer)
        left.set(title=f"{target}: search", xlabel="measurements", ylabel="best loss so far, held-out split")
        own = [row for row in rows if row["target"] == target]
        for place, row in enumerate(own):
            right.plot([place, place], [row["loss_low"], row["loss_high"]], color=colours[row["proposer"]], linewidth=2)
            right.plot([place], [row["loss"]], "o", color=colours[row["proposer"]])
        right.set_xticks(range(len(own)), [row["proposer"] for row in own], rotation=25, ha="right")
        right.set_xlim(-0.6, len(own) - 0.4)
        right.set(title=f"{target}: new images", ylabel="loss after recovery, mean and range")
        for panel in (left, right):
            panel.grid(axis="y", color="0.92")
            panel.tick_params(labelsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(PROPOSERS), fontsize=9, frameon=False)
    figure.savefig(RESULTS / "search.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--llm", metavar="URL", help="ask the local language model there")
    parser.add_argument("--proposers", nargs="*", choices=(ONE_SHOT, *PROPOSERS), default=[ONE_SHOT, *PROPOSERS])
    parser.add_argument("--recorded", action="store_true", help="the recorded answers of a frontier model, with their control")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    header = {"measurements": MEASUREMENTS, "search_recovery": SEARCH_RECOVERY.steps, "final_recovery": FINAL_RECOVERY.steps}
    proposers, targets, seeds = tuple(chosen.proposers), TARGETS, tuple(chosen.seeds)
    if chosen.recorded:
        proposers, targets, seeds = (ONE_SHOT, *RECORDED), RECORDED_TARGETS, RECORDED_SEEDS
    name = "search_recorded" if chosen.recorded else "search"
    with opened(CACHE / f"{name}.jsonl", "search benchmark", header, resume=True) as journal:
        runs = [dict(entry) for entry in journal.entries]
        for seed, target, proposer in itertools.product(seeds, targets, proposers):
            if any((run["proposer"], run["target"], run["seed"]) == (proposer, target, seed) for run in runs):
                continue
            print(f"{proposer}, target {target}, seed {seed}", flush=True)
            runs.append(run(proposer, target, seed, chosen.llm))
            journal.append(runs[-1])
    rows = summary(runs, RECORDED if chosen.recorded else PROPOSERS)
    print_table("Search against one-shot, untouched split", tuple(rows[0]), rows)
    unpruned = held_out_loss(trained(SUBJECT), data_for(0)[1], seed=0)
    settings = {**header, "learning_rate": FINAL_RECOVERY.learning_rate, "unpruned_loss": unpruned, "network": SUBJECT.name}
    save(name, {**settings, "rows": rows, "runs": runs} | environment())
    if not chosen.recorded:
        plot(runs, rows)


if __name__ == "__main__":
    main()
