"""Is a budget of time met? Six networks pruned to 0.8, 0.6 and 0.4 of their time, and measured again in a run of its own.

    python benchmarks/time_targets.py                      # on a processor, one thread
    python benchmarks/time_targets.py --device cuda        # on a GPU
    python benchmarks/time_targets.py --networks unet dit --targets 0.6 --runs 1
    python benchmarks/time_targets.py --threads 2 --runs 1 # wall time: on an idle machine only
    python benchmarks/time_targets.py --compile --runs 1   # under torch.compile
    python benchmarks/time_targets.py --journal time.jsonl # continues where it was stopped

For each target and run: predicted time before any correction, time that was measured while pruning, and time measured afterwards with the
unpruned network in turns. Each run has a table of its own, so that runs are independent. With --rounding, plans of the same share of MACs,
with widths as they come, in sixteens, and in the multiples that pay, are timed beside them: should `round_to="auto"` be the default?
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save
from torch import nn
from wall_time import dit, resnet, unet

import proxyprune as pp
from proxyprune.api import prune_ranked
from proxyprune.errors import TargetError
from proxyprune.measuring.network_times import CostTable
from proxyprune.measuring.time_budget import prune_to_time
from proxyprune.measuring.timed_run import timed_in_turns
from proxyprune.planning.request import PlanRequest

TARGETS = (0.8, 0.6, 0.4)
ROUNDINGS: tuple[int | str, ...] = (1, 16, "auto")


def vit() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a ViT of 6 layers and 192 channels on 64 x 64 images."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768, image_size=64, patch_size=8)
    return ViTForImageClassification(config), (torch.randn(1, 3, 64, 64),)


def mobilenet() -> tuple[nn.Module, tuple[Any, ...]]:
    """MobileNetV2 on 96 x 96 images: depthwise convolutions."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=96, num_labels=10)), (torch.randn(1, 3, 96, 96),)


def convnext() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a small ConvNeXt on 64 x 64 images: depthwise kernels of 7 x 7 and linear layers."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(depths=[2, 2, 4, 2], hidden_sizes=[64, 128, 256, 512], num_labels=10)
    return ConvNextForImageClassification(config), (torch.randn(1, 3, 64, 64),)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "unet": unet,
    "dit": dit,
    "resnet": resnet,
    "vit": vit,
    "mobilenet": mobilenet,
    "convnext": convnext,
}
"""The first three were used while the predictor was written; the others were not."""


class Journal:
    """Rows in a file, one a line, so that a stopped benchmark goes on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def row(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
        """Make a row unless it is there."""
        if any(all(row.get(name) == value for name, value in key.items()) for row in self.rows):
            return
        self.rows.append(key | make())
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")


def measure(name: str, run: int, arguments: argparse.Namespace, journal: Journal) -> None:
    """All targets of one network in one run."""
    torch.manual_seed(run)
    model, inputs = NETWORKS[name]()
    model = model.eval().to(arguments.device)
    inputs = tuple(value.to(arguments.device) for value in inputs)
    timing = pp.Timing(batch=arguments.batch, threads=arguments.threads if arguments.device == "cpu" else None, compiled=arguments.compile)
    started, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        graph = pp.with_times(pp.trace(model, inputs), model, inputs, timing, table=CostTable(Path(folder)))
    ranking = pp.score(graph, model=model)
    table = {"table_wall_s": time.perf_counter() - started, "table_cpu_s": time.process_time() - worked}
    assert graph.cost.time is not None
    table["table_calls"] = graph.cost.time.measured_now

    def timed(target: float) -> dict[str, Any]:
        request = PlanRequest.of(target, metric="time")
        try:
            result = prune_to_time(
                request,
                lambda asked: prune_ranked(model, inputs, graph, ranking, asked),
                lambda found, enough: timed_in_turns(model, found.model, inputs, timing, enough=enough),
                accept_missed=True,
            )
        except TargetError as error:
            return table | {"error": str(error)}
        found = result.report.time
        assert found is not None
        again = timed_in_turns(model, result.model, inputs, timing)
        return table | {
            "predicted": found.first_predicted,
            "first_measured": found.first_measured,
            "corrections": found.corrections,
            "while_pruning": found.ratio[1],
            "interval": found.interval,
            "turns": found.turns,
            "met": found.met,
            "measured": again.ratio.middle,
            "low": again.ratio.low,
            "high": again.ratio.high,
            "macs": result.plan.macs / result.plan.base_macs,
            "base_ms": 1000 * again.before.middle,
        }

    def rounded(target: float, round_to: int | str) -> dict[str, Any]:
        result = prune_ranked(model, inputs, graph, ranking, PlanRequest.of(target, round_to=round_to))
        assert result.plan.time is not None
        turns = timed_in_turns(model, result.model, inputs, timing)
        found = {"predicted": result.plan.time.ratio, "measured": turns.ratio.middle, "low": turns.ratio.low, "high": turns.ratio.high}
        return found | {"macs": result.plan.macs / result.plan.base_macs}

    for target in arguments.targets:
        journal.row({"kind": "time", "network": name, "target": target, "run": run}, lambda target=target: timed(target))
        if arguments.rounding and run == 0:
            for round_to in ROUNDINGS:
                key = {"kind": "macs", "network": name, "target": target, "run": run, "round_to": round_to}
                journal.row(key, lambda target=target, round_to=round_to: rounded(target, round_to))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts that the criteria of a budget of time need."""
    timed = [row for row in rows if row["kind"] == "time" and "error" not in row]
    errors = [abs(row["predicted"] / row["first_measured"] - 1) for row in timed]
    return {
        "pruned": len(timed),
        "out_of_reach": sum(row["kind"] == "time" and "error" in row for row in rows),
        "within_two_points": sum(row["measured"] <= row["target"] + 0.02 for row in timed),
        "worst_excess": max((row["measured"] - row["target"] for row in timed), default=None),
        "predicted_within_10_percent": sum(error <= 0.1 for error in errors),
        "worst_prediction": max(errors, default=None),
    }


def main() -> None:
    """All networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="Threads of the processor.")
    parser.add_argument("--compile", action="store_true", help="Time under torch.compile.")
    parser.add_argument("--rounding", action="store_true", help="Also time plans of the same share of MACs with several roundings.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--journal", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(arguments.threads)
    journal = Journal(arguments.journal)
    for run in range(arguments.runs):
        for name in arguments.networks:
            measure(name, run, arguments, journal)
            write(journal.rows, arguments)
    timed = [row for row in journal.rows if row["kind"] == "time" and "error" not in row]
    columns = ("network", "target", "run", "predicted", "first_measured", "corrections", "turns", "measured", "low", "high", "macs")
    print_table("Budgets of time", columns, [{name: row.get(name) for name in columns} for row in timed])


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Save what there is so far."""
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    settings = {
        "device": device,
        "batch": arguments.batch,
        "threads": torch.get_num_threads(),
        "compiled": arguments.compile,
        "clock": clock_of(arguments.device, arguments.threads),
    }
    content = settings | {"runs": 1 + max((row["run"] for row in rows), default=-1), "summary": summary(rows), "rows": rows}
    marks = [arguments.device] * (arguments.device != "cpu") + [f"{arguments.threads}_threads"] * (arguments.threads > 1)
    save("_".join(["time_targets", *marks, *["compiled"] * arguments.compile]), content | environment())


def clock_of(device: str, threads: int) -> str:
    """Say what a time is."""
    if device == "cuda":
        return "CUDA events"
    return "wall time" if threads > 1 else "processor time of the one thread that computes"


if __name__ == "__main__":
    main()
