"""Measure the time that the cost table of a budget of time takes: the 35.7 M parameter DDPM CIFAR-10 U-Net, first and second plan.

    python benchmarks/cost_table.py                # one thread and two
    python benchmarks/cost_table.py --threads 2
    python benchmarks/cost_table.py --device cuda  # on a GPU

The table is written to an empty folder, then `with_times` is called again on another copy of the network. Both are timed by the wall.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save
from prune_speed import ddpm_cifar10

import proxyprune as pp
from proxyprune.measuring.network_times import CostTable


def measured(device: str, threads: int | None, batch: int) -> dict[str, Any]:
    """Fill a table, and use it again."""
    row: dict[str, Any] = {"threads": threads, "batch": batch}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            model = ddpm_cifar10().eval().to(device)
            inputs = (torch.randn(1, 3, 32, 32, device=device), torch.tensor(1, device=device))
            graph = pp.trace(model, inputs)
            start = time.perf_counter()
            graph = pp.with_times(graph, model, inputs, pp.Timing(batch=batch, threads=threads), table=CostTable(Path(folder)))
            row[f"{name}_s"] = time.perf_counter() - start
            assert graph.cost.time is not None
            row[f"{name}_timed_calls"] = graph.cost.time.measured_now
    return row


def main() -> None:
    """Print a table and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    threads = options.threads if options.device == "cpu" else [None]
    rows = [measured(options.device, count, options.batch) for count in threads]
    print_table("Seconds for the cost table of the DDPM CIFAR-10 U-Net", tuple(rows[0]), rows)
    name = "cost_table" if options.device == "cpu" else f"cost_table_{options.device}"
    save(name, {"device": options.device, "rows": rows} | environment())


if __name__ == "__main__":
    main()
