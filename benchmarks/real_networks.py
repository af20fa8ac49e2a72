"""Real pretrained networks, cut with and without compensation: perplexity, cosine to the original, same decision.

Data and weights come from packages; the head of benchmarks/real_subjects.py says how to install them. Every cell is written to a
journal when it is measured, so that a run that was stopped goes on where it was.

    python benchmarks/real_networks.py                                         # all networks; writes results/real_networks.json
    python benchmarks/real_networks.py --networks minilm --scorers wanda,magnitude --ratios 0.8,0.5 --draws 1
    python benchmarks/real_networks.py --scorers auto --draws 1                # scorer="auto", chosen with compensation
    python benchmarks/real_networks.py --scorers obs --steps 4                 # in four steps, compensated after each
    python benchmarks/real_networks.py --scorers FLAP,GRAIL                    # peers; the head of real_peers.py lists them
    python benchmarks/real_networks.py --scorers block_influence --mode depth
    python benchmarks/real_networks.py --networks minilm --scorers wanda --ratios 0.8,0.6 --uniform none,config,layers --merge
    python benchmarks/real_networks.py --from-journal                          # table and JSON of what is measured already
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, print_table, save
from real_peers import PEERS, peer_cut
from real_subjects import NETWORKS, RealNetwork

import proxyprune as pp
from proxyprune.measuring.journal import Journal, opened

SCORERS = "magnitude,wanda,taylor,fisher,obs,random"
RATIOS = "0.9,0.8,0.7,0.6,0.5"
TOKENS = 20_480
GRADIENTS = ("taylor", "fisher", "wanda")
"""Scorers that need the loss; without it compensation and "auto" are judged by the distance of the outputs."""


@dataclass(frozen=True)
class Cell:
    """One cut: what the journal is searched by."""

    network: str
    draw: int
    scorer: str
    ratio: float

    def as_key(self) -> dict[str, Any]:
        """Plain values."""
        return {"network": self.network, "draw": self.draw, "scorer": self.scorer, "ratio": self.ratio}


@dataclass(frozen=True)
class Shape:
    """Settings of one cut.

    Attributes:
        mode: As in `pp.prune`.
        uniform: As in `pp.prune`, or "none" for free widths.
    """

    mode: str
    uniform: str


def measured(subject: RealNetwork, ranking: pp.Ranking, graph: pp.ModelGraph, cell: Cell, shape: Shape) -> dict[str, Any]:
    """Cut to one ratio, and judge with and without compensation."""
    from proxyprune.api import prune_ranked
    from proxyprune.planning.request import PlanRequest

    uniform = False if shape.uniform == "none" else shape.uniform
    request = PlanRequest.of(cell.ratio, metric=subject.budget, keep=subject.keep, uniform=uniform, mode=shape.mode)
    cut = prune_ranked(subject.model, subject.example, graph, ranking, request)
    without = subject.judge(cut.model)
    started = time.perf_counter()
    fixed = pp.compensate(cut, subject.model, subject.batches, subject.loss_fn if subject.metric == "perplexity" else None, seed=cell.draw)
    seconds = time.perf_counter() - started
    found = fixed.report.compensation
    assert found is not None
    return {
        **cell.as_key(),
        "metric": subject.metric,
        "share": (cut.plan.params / cut.plan.base_params) if subject.budget == "params" else cut.plan.macs / cut.plan.base_macs,
        "without": without,
        "with": subject.judge(fixed.model),
        "accepted": found.accepted,
        "refitted": len(found.refitted),
        "layers": len(found.layers),
        "held_out": [found.before, found.after],
        "buffer_bytes": found.buffer_bytes,
        "seconds": seconds,
    }


def by_peer(subject: RealNetwork, graph: pp.ModelGraph, cell: Cell) -> dict[str, Any]:
    """Cut as a peer does; "without" is its cut, "with" the network after its own repair. Whatever it raises becomes the cell's error."""
    started = time.perf_counter()
    entry = {**cell.as_key(), "metric": subject.metric, "peer": True, "refitted": None, "layers": None}
    try:
        found = peer_cut(cell.scorer, subject, graph, cell.ratio, cell.draw)
        without = subject.judge(found.cut)
        repaired = without if found.final is found.cut else subject.judge(found.final)
    except Exception as error:  # noqa: BLE001  another method's failure is a result here
        text = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"
        return {**entry, "error": text, "seconds": time.perf_counter() - started}
    share = found.params / graph.params if subject.budget == "params" else found.macs / graph.macs
    return {**entry, "share": share, "without": without, "with": repaired, "seconds": time.perf_counter() - started}


def in_one_call(subject: RealNetwork, cell: Cell, scorer: str, steps: int) -> dict[str, Any]:
    """Cut with `pp.prune`: by the scorer that it chooses, or in several steps; always with compensation."""
    loss_fn = subject.loss_fn if subject.metric == "perplexity" or scorer in GRADIENTS else None
    started = time.perf_counter()
    result = pp.prune(
        subject.model,
        subject.example,
        cell.ratio,
        scorer,
        batches=subject.batches,
        loss_fn=loss_fn,
        seed=cell.draw,
        compensate=True,
        steps=steps,
        metric=subject.budget,
        keep=subject.keep,
    )
    found, trials = result.report.compensation, result.report.trials
    assert found is not None
    share = result.plan.params / result.plan.base_params if subject.budget == "params" else result.plan.macs / result.plan.base_macs
    return {
        **cell.as_key(),
        "metric": subject.metric,
        "share": share,
        "without": dict.fromkeys(with_it := subject.judge(result.model)),
        "with": with_it,
        "accepted": found.accepted,
        "refitted": len(found.refitted),
        "layers": len(found.layers),
        "held_out": [found.before, found.after],
        "buffer_bytes": found.buffer_bytes,
        "seconds": time.perf_counter() - started,
        "trials": None if trials is None else [(t.scorer, t.mode, t.value, t.chosen) for t in trials.tried],
    }


def labelled(scorer: str, steps: int, shape: Shape) -> str:
    """Return the name of an arm: its scorer, and each option that is not the default."""
    mode = "" if shape.mode == "width" else f", {shape.mode}"
    return scorer + mode + ("" if steps == 1 else f", {steps} steps") + ("" if shape.uniform == "none" else f", uniform {shape.uniform}")


def merged(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return results with the cells of an earlier file that were not measured again; each cell has the commit at which it was added."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"commit": None, "unpruned": {}, "cells": []}
    found = {key_of(cell): {"commit": source["commit"], **cell} for source in (before, content) for cell in source["cells"]}
    ordered = sorted(found.values(), key=lambda cell: (cell["network"], *_place(cell)))
    return {**content, "unpruned": before["unpruned"] | content["unpruned"], "cells": ordered}


def key_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a cell is found by."""
    return entry["network"], entry["draw"], entry["scorer"], entry["ratio"]


def cells(subject: RealNetwork, name: str, draw: int, asked: argparse.Namespace, journal: Journal) -> Iterator[Mapping[str, Any]]:
    """Every cell of one network and one draw; those in the journal are not measured again."""
    done = {key_of(entry): entry for entry in journal.entries}
    graph = pp.trace(subject.model, subject.example, probe=False)
    for scorer in asked.scorers.split(","):
        ranking = None
        for uniform, ratio in product(asked.uniform.split(","), map(float, asked.ratios.split(","))):
            shape = Shape(asked.mode, uniform)
            label = labelled(scorer, asked.steps, shape)
            known = done.get((name, draw, label, ratio))
            if known is not None:
                yield known
                continue
            if scorer in PEERS:
                entry = by_peer(subject, graph, Cell(name, draw, label, ratio))
                journal.append(entry)
                yield entry
                continue
            if scorer == "auto" or asked.steps > 1:
                entry = in_one_call(subject, Cell(name, draw, label, ratio), scorer, asked.steps)
                journal.append(entry)
                yield entry
                continue
            if ranking is None:
                started = time.perf_counter()
                batches, loss_fn = subject.batches, subject.loss_fn
                ranking = pp.score(graph, scorer, model=subject.model, batches=batches, loss_fn=loss_fn, seed=draw)
                scoring = time.perf_counter() - started
            entry = {**measured(subject, ranking, graph, Cell(name, draw, label, ratio), shape), "scoring_seconds": scoring}
            journal.append(entry)
            yield entry


def rows(entries: list[Mapping[str, Any]], unpruned: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """One row for each cell and text."""
    for entry in entries:
        for text, value in entry.get("without", {}).items():
            yield {
                "network": entry["network"],
                "draw": entry["draw"],
                "scorer": entry["scorer"],
                "ratio": entry["ratio"],
                "on": text,
                "measure": entry["metric"],
                "unpruned": unpruned[entry["network"]].get(text),
                "without": value,
                "with": entry["with"][text],
                "refitted": None if entry["layers"] is None else f"{entry['refitted']}/{entry['layers']}",
                "seconds": entry["seconds"],
            }


def _place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["scorer"], -entry["ratio"], entry["draw"]


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--scorers", default=SCORERS)
    parser.add_argument("--ratios", default=RATIOS)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="evaluated on each text")
    parser.add_argument("--steps", type=int, default=1, help="cuts, with a compensation after each")
    parser.add_argument("--mode", default="width", choices=("width", "depth", "both"))
    parser.add_argument("--uniform", default="none", help="none, config or layers; several between commas")
    parser.add_argument("--merge", action="store_true", help="keep the cells of the JSON file that are not measured")
    parser.add_argument("--from-journal", action="store_true", help="measure nothing; table and JSON of the cells in the journal")
    parser.add_argument("--journal", type=Path, default=Path("benchmarks/.cache/real_networks.jsonl"))
    parser.add_argument("--name", default="real_networks", help="of the JSON file in benchmarks/results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.journal.parent.mkdir(parents=True, exist_ok=True)
    found: list[Mapping[str, Any]] = []
    unpruned: dict[str, dict[str, float]] = {}
    with opened(asked.journal, "benchmark of real networks", {"tokens": asked.tokens}, resume=True) as journal:
        for name in asked.networks.split(","):
            if asked.from_journal:
                subject = NETWORKS[name](0, asked.tokens)
                unpruned[name] = subject.judge(subject.model)
                found += sorted((e for e in journal.entries if e["network"] == name), key=_place)
                continue
            for draw in range(asked.draws):
                subject = NETWORKS[name](draw, asked.tokens)
                unpruned.setdefault(name, subject.judge(subject.model))
                found += cells(subject, name, draw, asked, journal)
    columns = ("network", "draw", "scorer", "ratio", "on", "measure", "unpruned", "without", "with", "refitted", "seconds")
    print_table("Cut networks, without and with compensation", columns, list(rows(found, unpruned)))
    found = [{"tokens": asked.tokens, **entry} for entry in found]
    content = {**environment(), "tokens": asked.tokens, "unpruned": unpruned, "cells": found}
    save(asked.name, merged(asked.name, content) if asked.merge else content)


if __name__ == "__main__":
    main()
