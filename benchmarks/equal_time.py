"""At equal measured time, is the loss of a time plan no worse than that of a plan of MACs? Trained networks, same scores, same recovery.

The three networks of the scorer benchmark (see fashion.py) are pruned to 0.6 and 0.4 of the time of a forward pass. The share of a plan of
MACs, with widths as they come (`round_to=1`), is then bisected until its network takes as long as that of the time plan, as a user would
tune it by hand. Both are recovered with three seeds. Times are processor time of one thread, in turns.

    OMP_NUM_THREADS=1 python benchmarks/equal_time.py                  # about ten minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/equal_time.py --networks dit --targets 0.6
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save
from compare_scorers import CALIBRATION, Setting
from fashion import SUBJECTS
from torch import nn

import proxyprune as pp
from proxyprune.api import prune_ranked
from proxyprune.comparing.run_comparison import calibration_of
from proxyprune.errors import TargetError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import held_out_loss, recovered
from proxyprune.measuring.network_times import CostTable
from proxyprune.measuring.time_budget import prune_to_time
from proxyprune.measuring.time_corrections import is_precise
from proxyprune.measuring.timed_run import TimedTurns, timed_in_turns
from proxyprune.planning.request import PlanRequest
from proxyprune.result import PruneResult
from proxyprune.scoring.ranking import Ranking

TARGETS = (0.6, 0.4)
SEEDS = (0, 1, 2)
BATCH = 64
SCORER = "taylor"
BISECTIONS = 9
EQUAL = 0.01
"""Largest difference between the times of both networks, as a share; a plan of MACs may take this much longer."""


class Cell:
    """One network with its cost table and its ranking."""

    def __init__(self, setting: Setting, graph: ModelGraph, timing: pp.Timing) -> None:
        self.setting = setting
        self.model = setting.model
        self.inputs = setting.subject.example_inputs
        self.graph = graph
        self.timing = timing
        scored = calibration_of(setting.data.batches, CALIBRATION, 0)
        self.ranking: Ranking = pp.score(
            graph, SCORER, model=self.model, batches=scored, loss_fn=setting.subject.loss_fn, example_inputs=self.inputs
        )

    def pruned(self, request: PlanRequest) -> PruneResult:
        """Return the network of a request."""
        return prune_ranked(self.model, self.inputs, self.graph, self.ranking, request)

    def turns(self, before: nn.Module, after: nn.Module) -> TimedTurns:
        """Time two networks in turns until the ratio is known to a point."""
        return timed_in_turns(before, after, self.inputs, self.timing, enough=lambda found: is_precise(found.interval, found.ratio.middle))

    def by_time(self, target: float) -> PruneResult:
        """Return the network of a time plan."""
        return prune_to_time(
            PlanRequest.of(target, metric="time"),
            self.pruned,
            lambda found, enough: timed_in_turns(self.model, found.model, self.inputs, self.timing, enough=enough),
            accept_missed=True,
        )

    def by_macs(self, like: nn.Module) -> tuple[PruneResult, float]:
        """Return the network of the largest share of MACs that takes as long as another one, and its time relative to that."""
        low, high = 0.02, 0.99
        found: list[tuple[float, PruneResult, float]] = []
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            try:
                result = self.pruned(PlanRequest.of(share, round_to=1))
            except TargetError:  # the share is out of reach
                low = share
                continue
            ratio = self.turns(like, result.model).ratio.middle
            found.append((share, result, ratio))
            low, high = (share, high) if ratio <= 1 + EQUAL else (low, share)
        fitting = [entry for entry in found if entry[2] <= 1 + EQUAL]
        _, result, ratio = max(fitting, key=lambda entry: entry[0]) if fitting else min(found, key=lambda entry: entry[2])
        return result, ratio

    def row(self, arm: str, result: PruneResult) -> dict[str, Any]:
        """Return cost, time and losses of a network."""
        setting = self.setting
        turns = self.turns(self.model, result.model)
        losses = [held_out_loss(recovered(result.model, setting.data, setting.recovery, seed), setting.data, seed) for seed in SEEDS]
        return {
            "network": setting.subject.name,
            "arm": arm,
            "macs": result.plan.macs / result.plan.base_macs,
            "params": result.plan.params / result.plan.base_params,
            "time": turns.ratio.middle,
            "interval": turns.interval,
            "turns": turns.turns,
            "cut": held_out_loss(result.model, setting.data, 0),
            "recovered": sum(losses) / len(losses),
            "by_seed": losses,
        }


def rows_of(cell: Cell, target: float) -> list[dict[str, Any]]:
    """Return the rows of both plans, or one that has the error."""
    key = {"network": cell.setting.subject.name, "target": target}
    try:
        timed = cell.by_time(target)
    except TargetError as error:
        return [key | {"arm": "time", "error": str(error)}]
    counted, ratio = cell.by_macs(timed.model)
    measured = timed.report.time
    assert measured is not None
    shown = {"met": measured.met, "corrections": measured.corrections, "first_predicted": measured.first_predicted}
    first = key | cell.row("time", timed) | shown
    return [first, key | cell.row("MACs", counted) | {"time_of_time_plan": ratio}]


def base_row(cell: Cell) -> dict[str, Any]:
    """Return the loss of the unpruned network, as it is and after the same recovery."""
    setting = cell.setting
    losses = [held_out_loss(recovered(cell.model, setting.data, setting.recovery, seed), setting.data, seed) for seed in SEEDS]
    cut = held_out_loss(cell.model, setting.data, 0)
    return {"network": setting.subject.name, "arm": "unpruned", "cut": cut, "recovered": sum(losses) / len(losses), "by_seed": losses}


def compared(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return how often the time plan has the lower loss."""
    timed = {(row["network"], row["target"]): row for row in rows if row["arm"] == "time" and "error" not in row}
    counted = {(row["network"], row["target"]): row for row in rows if row["arm"] == "MACs"}
    pairs = [(timed[key], counted[key]) for key in timed if key in counted]
    seeds = [(early, late) for one, other in pairs for early, late in zip(one["by_seed"], other["by_seed"], strict=True)]
    return {
        "pairs": len(pairs),
        "lower_after_recovery": sum(one["recovered"] < other["recovered"] for one, other in pairs),
        "lower_after_cut": sum(one["cut"] < other["cut"] for one, other in pairs),
        "seeds": len(seeds),
        "seeds_lower": sum(early < late for early, late in seeds),
    }


def main() -> None:
    """All networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--targets", nargs="*", type=float, default=list(TARGETS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    timing, rows, started = pp.Timing(batch=BATCH, threads=1), [], time.process_time()
    for subject in (subject for subject in SUBJECTS if subject.name in chosen.networks):
        setting = Setting.of(subject)
        with tempfile.TemporaryDirectory() as folder:
            graph = pp.trace(setting.model, subject.example_inputs)
            graph = pp.with_times(graph, setting.model, subject.example_inputs, timing, table=CostTable(Path(folder)))
        cell = Cell(setting, graph, timing)
        rows.append(base_row(cell))
        for target in chosen.targets:
            rows += rows_of(cell, target)
            print(f"{subject.name}, {target}: {time.process_time() - started:.0f} s of processor time so far", flush=True)
    columns = ("network", "target", "arm", "macs", "time", "cut", "recovered")
    print_table("Losses at equal time", columns, [{name: row.get(name) for name in columns} for row in rows])
    settings = {"batch": BATCH, "threads": 1, "scorer": SCORER, "seeds": SEEDS, "clock": "processor time of the one thread that computes"}
    recovery = {"recovery_steps": setting.recovery.steps, "processor_s": round(time.process_time() - started)}
    save("equal_time", settings | recovery | {"summary": compared(rows), "rows": rows} | environment())


if __name__ == "__main__":
    main()
