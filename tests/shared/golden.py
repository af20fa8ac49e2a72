"""Texts, rankings and plans of the whole zoo, as one record to compare with.

`golden/zoo.json` holds the record. Write it again only when a plan, a text or a ranking is meant to change, and say in the commit
which and why:

    python tests/shared/golden.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from traced import traced
from zoo import names

import proxyprune as pp
from proxyprune.errors import TargetError

FILE = Path(__file__).parent / "golden" / "zoo.json"

SEED = 3
PLANS: dict[str, dict[str, Any]] = {
    "width 0.6": {"target": 0.6},
    "width 0.4, multiples of 8": {"target": 0.4, "round_to": 8},
    "depth 0.8": {"target": 0.8, "mode": "depth"},
    "both 0.6": {"target": 0.6, "mode": "both"},
    "parameters 0.7": {"target": 0.7, "metric": "params"},
}
"""Name -> arguments of `make_plan`."""


def record(name: str) -> dict[str, Any]:
    """Digests of the text graph and the plans of one network, and its rankings.

    Scores are numbers and not digests: the last digit of a norm depends on the processor.
    """
    case = traced(name)
    model, graph = case.model, case.graph
    found: dict[str, Any] = {"text": _digest(graph.to_text()), "fingerprint": graph.fingerprint, "macs": graph.macs, "rankings": {}}
    found["plans"] = {}
    for scorer in ("magnitude", "random"):
        ranking = pp.score(graph, scorer, model=model, seed=SEED)
        found["rankings"][scorer] = {block: float(f"{score:.9g}") for block, score in ranking.scores.items()}
        for title, arguments in PLANS.items():
            try:
                found["plans"][f"{title}, {scorer}"] = _digest(
                    pp.make_plan(graph, ranking, model=model, accept_uncosted=True, **arguments).to_text()
                )
            except TargetError:
                found["plans"][f"{title}, {scorer}"] = "out of reach"
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def main() -> None:
    """Write the record of the whole zoo."""
    torch.set_num_threads(1)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({name: record(name) for name in names()}, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"wrote {FILE}\n")


if __name__ == "__main__":
    main()
