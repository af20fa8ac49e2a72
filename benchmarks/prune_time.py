"""Measure the CPU time of `pp.trace` and of `pp.prune` to 0.6 of the MACs by magnitude, on one core, for published networks.

The networks are those that took longest among the ones of `supported_networks.py`; in most of them probing amends the groups many times.
Each is measured in a process of its own. `digest` is a hash of graph, plan and surgery: two versions of the code with the same digest give
the same result. `afresh` is true if a new analysis that begins with all amendments gives the graph that probing gave.

    OMP_NUM_THREADS=1 python benchmarks/prune_time.py
    OMP_NUM_THREADS=1 python benchmarks/prune_time.py --table                # every network of the table of supported networks: an hour
    OMP_NUM_THREADS=1 python benchmarks/prune_time.py --before ../main       # also with the code of another checkout, in turns
    OMP_NUM_THREADS=1 python benchmarks/prune_time.py --only "timm/*" --profile 30   # where the time goes
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import networks_diffusers
import networks_timm
import networks_torchvision
import networks_transformers
import torch
from candidates import Candidate
from common import RESULTS, environment, print_table, save
from isolated import Limits, run_isolated
from torchvision_ops import import_torchvision

import proxyprune as pp
from proxyprune.graph.build import analyse

TARGET = 0.6
LIMITS = Limits(seconds=300, gib=14)
SETS: dict[str, Callable[[], Iterator[Candidate]]] = {
    "torchvision": networks_torchvision.candidates,
    "timm": networks_timm.candidates,
    "transformers": networks_transformers.candidates,
    "diffusers": networks_diffusers.candidates,
}
NETWORKS = (
    "torchvision/raft_small",
    "torchvision/ssd300_vgg16",
    "torchvision/swin_s",
    "timm/coat_tiny",
    "timm/efficientformerv2_s0",
    "timm/halonet_h1",
    "timm/xcit_nano_12_p8_224",
    "transformers/dpt",
    "transformers/mask2former",
)


def candidates(pattern: str) -> Iterator[Candidate]:
    """Yield the networks to measure."""
    names = {pattern.partition("/")[0]} & set(SETS) or set(SETS)
    by_key = {candidate.key: candidate for name in sorted(names) for candidate in SETS[name]()}
    chosen = NETWORKS if pattern == "*" else [key for key in by_key if fnmatch.fnmatch(key, pattern)]
    yield from (by_key[key] for key in chosen)


def tabulated() -> Iterator[Candidate]:
    """Yield the networks of the table of supported networks that could be built."""
    table = json.loads((RESULTS / "supported_networks.json").read_text(encoding="utf-8"))["networks"]
    names = {(row["set"], row["name"]) for row in table if row["built"]}
    yield from (candidate for known in SETS.values() for candidate in known() if (candidate.set, candidate.name) in names)


def measure(candidate: Candidate, profile: int) -> dict[str, Any]:
    """Time one network.

    Args:
        candidate: The network.
        profile: Lines of the profile to add, or 0 for none.
    """
    model = candidate.build()
    inputs = candidate.inputs(model)
    row: dict[str, Any] = {"network": candidate.key}
    samples = Samples() if profile else None
    digest = hashlib.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row["trace_s"], graph = _timed(lambda: pp.trace(model, inputs), samples)
        row["prune_s"], result = _timed(lambda: pp.prune(model, inputs, target=TARGET, scorer="magnitude"), samples)
    row["outcome"] = type(result).__name__ if isinstance(result, Exception) else "pruned"
    for text in (*_texts(graph), *_texts(result)):
        digest.update(text.encode())
    row["digest"] = digest.hexdigest()[:16]
    if not isinstance(graph, Exception):
        row["amendments"] = len(graph.amendments.pins) + len(graph.amendments.ties)
        row["afresh"] = _content(graph) == _content(analyse(model, graph.program, graph.options, graph.amendments))
    if samples is not None:
        row["profile"] = samples.text(profile)
    return row


class Samples:
    """CPU time by function: the functions on the stack, looked at every 5 ms of CPU time."""

    def __init__(self) -> None:
        self.count = 0
        self.on_stack: Counter[str] = Counter()
        self.innermost: Counter[str] = Counter()

    def start(self) -> None:
        """Look from now on."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, 0.005, 0.005)

    def stop(self) -> None:
        """Look no more."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _look(self, number: int, frame: FrameType | None) -> None:
        names = []
        while frame is not None:
            code = frame.f_code
            names.append(f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno} {code.co_qualname}")
            frame = frame.f_back
        self.count += 1
        self.innermost[names[0]] += 1
        self.on_stack.update(set(names))

    def text(self, lines: int) -> str:
        """Return shares of the time: of functions with all that they call, and of functions alone."""
        rows = [f"{number / self.count:7.1%} {name}" for name, number in self.on_stack.most_common(lines)]
        own = [f"{number / self.count:7.1%} {name}" for name, number in self.innermost.most_common(lines // 2)]
        return "\n".join(["with callees", *rows, "alone", *own])


def _timed(run: Callable[[], Any], samples: Samples | None) -> tuple[float, Any]:
    """Return CPU seconds, and the result or the exception."""
    start = time.process_time()
    if samples is not None:
        samples.start()
    try:
        result = run()
    except Exception as error:  # noqa: BLE001  the time of a network that is rejected counts too
        result = error
    if samples is not None:
        samples.stop()
    return round(time.process_time() - start, 2), result


def _texts(found: Any) -> Iterator[str]:
    """Yield what must be the same for two versions of the code."""
    if isinstance(found, Exception):
        yield str(found)
    elif isinstance(found, pp.PruneResult):
        yield from _texts(found.graph)
        yield json.dumps(found.plan.to_dict(), sort_keys=True, default=str)
        yield json.dumps(found.surgery.to_dict(), sort_keys=True, default=str)
    else:
        yield found.to_text()
        yield json.dumps(found.to_dict(), sort_keys=True, default=str)
        yield json.dumps(found.amendments.to_dict(), sort_keys=True)


def _content(graph: pp.ModelGraph) -> list[Any]:
    """List what a plan and a cut depend on."""
    groups = [
        (group.id, group.pinned, group.step, group.bins, group.blocks, [(m.parameter, m.dim, m.positions.tolist()) for m in group.members])
        for group in graph.groups
    ]
    classes = graph.coupling.classes
    return [groups, classes.of.tolist(), classes.reasons, *_texts(graph)]


def measured(candidate: Candidate, profile: int, before: str | None) -> dict[str, Any]:
    """Time one network in a process of its own, and with the code of another checkout if there is one."""
    row: dict[str, Any] = {}
    if before is not None:
        command = [sys.executable, __file__, "--only", candidate.key, "--rows"]
        environ = os.environ | {"PYTHONPATH": str(Path(before).resolve())}
        done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        earlier = json.loads(lines[-1]) if lines else {}
        row = {f"before_{key}": earlier.get(key) for key in ("trace_s", "prune_s", "digest")}
        described = subprocess.run(["git", "-C", before, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        row["before_commit"] = described.stdout.strip()
    outcome = run_isolated(lambda put: put(measure(candidate, profile)), LIMITS)
    return (dict(outcome.result) or {"network": candidate.key, "outcome": outcome.problem}) | row


def _put(name: str, row: dict[str, Any]) -> None:
    """Add a row to the file of results, or replace that of the same network; each has the commit that it was measured at."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    around = environment()
    known = {earlier["network"]: earlier for earlier in rows} | {row["network"]: row | {"commit": around.pop("commit")}}
    order = [key for key in NETWORKS if key in known] + sorted(set(known) - set(NETWORKS))
    save(name, {"target": TARGET, "rows": [known[key] for key in order]} | around)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="any published network whose set/name matches, instead of the list")
    parser.add_argument("--profile", type=int, default=0, metavar="LINES", help="print the most expensive functions")
    parser.add_argument("--table", action="store_true", help="measure every network of the table of supported networks")
    parser.add_argument("--before", metavar="FOLDER", help="another checkout of the package, measured in turns with this one")
    parser.add_argument("--rows", action="store_true", help="print rows of JSON alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    import_torchvision()
    name = "prune_time_table" if options.table else "prune_time"
    rows = []
    for candidate in tabulated() if options.table else candidates(options.only):
        row = measured(candidate, options.profile, options.before)
        if "profile" in row:
            print(row.pop("profile"))
        print(json.dumps(row), flush=True)
        rows.append(row)
        if not options.rows and not options.profile:
            _put(name, row)
    if options.rows:
        return
    columns = ("network", "before_trace_s", "before_prune_s", "trace_s", "prune_s", "amendments", "outcome")
    print_table("CPU seconds on one core", columns, rows)


if __name__ == "__main__":
    main()
