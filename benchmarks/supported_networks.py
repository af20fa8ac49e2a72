"""Try published networks, and write down which of them proxyprune prunes. Random weights, one process each, and torch-pruning beside it.

Sets: torchvision's builders, the smallest network of every module of timm, tiny configurations of every model type of transformers, and
the networks of diffusers. Checks: built, traced, pruned to 0.6 of the MACs, runs, exact MACs, saved and loaded bit-identical, greedy tokens
with and without caches, one training step.

    OMP_NUM_THREADS=1 python benchmarks/supported_networks.py                # hours; continues where it was stopped with --resume
    OMP_NUM_THREADS=1 python benchmarks/supported_networks.py --set timm --only "vit*" --no-peer
    python benchmarks/supported_networks.py --page                           # the page of the documentation, from the JSON
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import networks_diffusers
import networks_timm
import networks_torchvision
import networks_transformers
import torch
from candidates import Candidate
from common import RESULTS, environment, save
from isolated import Limits, run_isolated
from rich.console import Console
from rich.table import Table
from supported_page import write_page
from supported_peer import judge_peer
from torchvision_ops import import_torchvision
from verdicts import CHECKS, TARGET, Verdict, judge

SETS: dict[str, Callable[[], Iterator[Candidate]]] = {
    "torchvision": networks_torchvision.candidates,
    "timm": networks_timm.candidates,
    "transformers": networks_transformers.candidates,
    "diffusers": networks_diffusers.candidates,
}
ROOT = Path(__file__).parent.parent
CACHE = Path(__file__).parent / ".cache"
NAME = "supported_networks"
LIMITS = Limits(seconds=120, gib=14)
PEER_LIMITS = Limits(seconds=60, gib=14)
WIDTH = 80
SHARED = (
    "torch._dynamo",
    "torch.export",
    "torch_pruning",
    "timm",
    "transformers.modeling_utils",
    "transformers.integrations.hub_kernels",
    "transformers.loss.loss_utils",
    "diffusers.models.modeling_utils",
    "proxyprune.api",
    "proxyprune.saving.network_folder",
)
"""Imported before any process is forked: each network would import them for itself, which takes ten seconds."""


def try_network(candidate: Candidate) -> Verdict:
    """Judge one network in a process of its own."""
    outcome = run_isolated(lambda put: put(judge(candidate, lambda so_far: put(so_far.to_dict())).to_dict()), LIMITS)
    verdict = Verdict.from_dict(outcome.result) if outcome.result else Verdict(candidate.set, candidate.name)
    return verdict if outcome.problem is None else verdict.failing(verdict.stage, outcome.problem)


def try_peer(candidate: Candidate, verdict: Verdict) -> Verdict:
    """Try torch-pruning on a network that could be built, in a process of its own."""
    if not verdict.built:
        return verdict
    outcome = run_isolated(lambda put: put(judge_peer(candidate, verdict, lambda so_far: put(so_far.to_dict())).to_dict()), PEER_LIMITS)
    found = Verdict.from_dict(outcome.result) if outcome.result else verdict
    return found if outcome.problem is None else replace(found, peer=False, peer_error=outcome.problem)


def journal_path() -> Path:
    """Return the journal of the present code: verdicts on other code must not be mixed with it."""
    digest = hashlib.sha256("".join(metadata.version(name) for name in ("torch", "transformers", "diffusers")).encode())
    for path in sorted((ROOT / "proxyprune").rglob("*.py")):
        digest.update(path.read_bytes())
    return CACHE / f"{NAME}-{digest.hexdigest()[:10]}.jsonl"


def read_journal(journal: Path) -> dict[str, Verdict]:
    """Read what earlier runs found, by key; a later line replaces an earlier one, a torn last line is skipped."""
    found = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            verdict = Verdict.from_dict(json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        found[f"{verdict.set}/{verdict.name}"] = verdict
    return found


def append(journal: Path, verdict: Verdict) -> None:
    """Add a line to the journal and flush it to disk."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(verdict.to_dict()) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def chosen_candidates(options: argparse.Namespace) -> list[Candidate]:
    """Return the candidates that the options select; shuffled, they are in the same order every time."""
    chosen = [
        candidate
        for name in options.set or SETS
        for candidate in SETS[name]()
        if fnmatch.fnmatch(candidate.name, options.only) or fnmatch.fnmatch(candidate.key, options.only)
    ]
    return sorted(chosen, key=lambda candidate: hashlib.sha256(candidate.key.encode()).digest()) if options.shuffle else chosen


def totals(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Count each check over each set."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(verdict.set for verdict in verdicts):
        rows = [verdict for verdict in verdicts if verdict.set == name]
        counts: dict[str, Any] = {"tried": len(rows)} | {check: sum(getattr(row, check) is True for row in rows) for check in CHECKS}
        counts["causal"] = sum(row.greedy is not None for row in rows)
        counts["trainable"] = sum(row.trains is not None for row in rows)
        counts["clean"] = sum(bool(row.planned) and not row.failed for row in rows)
        counts["peer_tried"] = sum(row.peer is not None for row in rows)
        counts["peer"] = sum(row.peer is True for row in rows)
        found[name] = counts
    return found


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    available = {name: sum(1 for _ in candidates()) for name, candidates in SETS.items()}
    counted = totals(verdicts)
    return {
        "target": TARGET,
        "checks": CHECKS,
        "limits": {"seconds": LIMITS.seconds, "gib": LIMITS.gib, "peer_seconds": PEER_LIMITS.seconds},
        "whole": all(counted.get(name, {}).get("tried") == count for name, count in available.items()),
        "available": available,
        "totals": counted,
        "networks": [verdict.to_dict() for verdict in verdicts],
    }


def versions() -> dict[str, Any]:
    """Return machine, commit and versions, with those of torchvision and timm."""
    import timm

    found = environment()
    found["versions"] |= {"torchvision": import_torchvision().__version__, "timm": timm.__version__}
    return found


def show(verdicts: Sequence[Verdict]) -> None:
    """Print verdicts and totals, 80 columns wide."""
    console = Console(width=WIDTH)
    table = Table(title=f"Published networks at {TARGET} of the MACs", width=WIDTH)
    table.add_column("network", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("verdict", width=22, overflow="ellipsis", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("torch-pruning")
    for verdict in verdicts:
        table.add_row(verdict.name, verdict_text(verdict), _seconds(verdict.seconds), _peer(verdict))
    console.print(table)
    shares = Table(title="Totals", width=WIDTH)
    for column in ("set", "tried", "built", "traced", "planned", "runs", "exact", "saved"):
        shares.add_column(column, justify="left" if column == "set" else "right")
    for name, counts in totals(verdicts).items():
        shares.add_row(name, *(str(counts[column]) for column in ("tried", "built", "traced", "planned", "runs", "exact", "saved")))
    console.print(shares)
    causes = Counter((verdict.failed[0], (verdict.error or "")[:90]) for verdict in verdicts if verdict.failed)
    for (check, error), count in causes.most_common(30):
        console.print(f"{count:4} not {check}: {error}", markup=False, highlight=False)


def verdict_text(verdict: Verdict) -> str:
    """Return "supported", or the checks that failed."""
    if not verdict.failed:
        return "supported"
    if verdict.best_share is not None:
        return f"down to {verdict.best_share:.2f} only"
    return "not " + ", ".join(verdict.failed)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _peer(verdict: Verdict) -> str:
    return {None: "", True: "runs", False: "fails"}[verdict.peer]


def run(options: argparse.Namespace, journal: Path) -> list[Verdict]:
    """Try what is selected, and return its verdicts in the order of the sets."""
    done = read_journal(journal) if options.resume else {}
    found, fresh = [], 0
    for candidate in chosen_candidates(options):
        known = done.get(candidate.key)
        complete = known is not None and not (options.peer and known.built and known.peer is None)
        if not complete and options.limit and fresh >= options.limit:
            break
        verdict = known or try_network(candidate)
        if not complete:
            fresh += 1
            verdict = try_peer(candidate, verdict) if options.peer else verdict
            append(journal, verdict)
            print(f"{candidate.key}: {verdict_text(verdict)} {verdict.error or ''}"[:160], flush=True)
        found.append(verdict)
    return found


def everything_known(journal: Path) -> list[Verdict]:
    """Return the verdicts of the journal on candidates that there are, in the order of the sets."""
    done = read_journal(journal)
    return [done[candidate.key] for candidates in SETS.values() for candidate in candidates() if candidate.key in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", choices=list(SETS), help="only this set; may be repeated")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only networks whose name, or set/name, matches")
    parser.add_argument("--limit", type=int, default=0, help="stop after this many networks that were not tried before")
    parser.add_argument("--shuffle", action="store_true", help="in a mixed order, so that a part is a sample of the whole")
    parser.add_argument("--resume", action="store_true", help="keep what earlier runs found")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="try torch-pruning too")
    parser.add_argument("--page", action="store_true", help="write the page of the documentation from the JSON, and try nothing")
    options = parser.parse_args()
    if options.page:
        write_page(json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8")))
        return
    torch.set_num_threads(1)
    import_torchvision()  # first of all: timm, and transformers where it finds it, import it too
    for name in SHARED:
        importlib.import_module(name)
    chosen = bool(options.set) or options.only != "*" or bool(options.limit)
    journal = journal_path()
    if not options.resume and not chosen:
        journal.unlink(missing_ok=True)
    show(run(options, journal))
    if options.resume or not chosen:
        save(NAME, summary(everything_known(journal)) | versions())


if __name__ == "__main__":
    main()
