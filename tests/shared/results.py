"""One result of every kind, for the tests of reports: real ones where this package makes them, files of the same form elsewhere."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.cli.output.payloads import ranking_payload

HOSTILE = (
    "<script>window.stolen=1</script>",
    '"><img src=x onerror=window.stolen=1>',
    "</style></title></svg>&amp;{{ 7*7 }}",
    "ש‮gnp.exe",
    "x" * 300,
)


class Residual(nn.Module):
    """A block that can leave."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add two convolutions."""
        return x + self.conv2(self.conv1(x).relu())


class Hourglass(nn.Module):
    """Down, through, and up again, with a skip across."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = Residual(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.deep = nn.ModuleList(Residual(16) for _ in range(2))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the same size."""
        high = self.wide(self.stem(x))
        low = self.down(high)
        for block in self.deep:
            low = block(low)
        return self.head(self.join(torch.cat([high, self.up(low)], 1)).relu())


@cache
def pruned() -> pp.PruneResult:
    """Return the hourglass, channels cut and a block removed."""
    return pp.prune(Hourglass(), torch.zeros(1, 3, 8, 8), 0.55, mode="both")


def network(folder: Path) -> Path:
    return pp.save(pruned(), folder / "network")


def older(folder: Path) -> Path:
    """As versions before reports saved it: no graph.json, no versions, no parameters by block."""
    path = pp.save(pruned(), folder / "older")
    (path / "graph.json").unlink()
    report = json.loads((path / "report.json").read_text())
    for key in ("block_params", "made_with"):
        del report[key]
    (path / "report.json").write_text(json.dumps(report))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]["graph.json"], manifest["sha256"]["report.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def plan(folder: Path) -> Path:
    pruned().plan.to_json(folder / "plan.json")
    return folder / "plan.json"


def ranking(folder: Path) -> Path:
    """As `score --json` prints it, from a scorer that was asked several times."""
    given = replace(pruned().ranking, confidence=0.31, unreliable="5 answers agree no better than chance would.")
    asked = {"provider": "local", "model": "small", "samples": 5, "requests": 6, "replayed": 4, "usage": {"input_tokens": 900}}
    return written(folder / "score.json", ranking_payload(pruned().graph, given, asked))


def described(folder: Path) -> Path:
    return written(folder / "structure.json", pruned().graph.to_dict())


def long(folder: Path) -> Path:
    """120 blocks at one resolution, twice as wide as a page, with skips."""
    blocks = [block(f"layers.{index}", [f"layers.{index - 1}"] if index else ["input"]) for index in range(120)]
    for index in range(10, 50):
        blocks[119 - index]["inputs"].append(f"layers.{index}")
    for index, entry in enumerate(blocks):
        entry["resolution"] = [2 ** (6 - min(index, 119 - index) // 12)] * 2
    return written(folder / "long.json", scored(blocks))


def hostile(folder: Path) -> Path:
    """Names that try to be something else than names."""
    blocks = [block(name, [HOSTILE[index - 1]] if index else ["input"]) for index, name in enumerate(HOSTILE)]
    for entry in blocks:
        entry["kind"] = entry["class_name"] = HOSTILE[0]
    data = scored(blocks) | {"notes": list(HOSTILE), "scorer": HOSTILE[1], "model_class": HOSTILE[0], "unreliable": HOSTILE[2]}
    return written(folder / "hostile.json", data | {"made_with": {HOSTILE[1]: HOSTILE[0]}})


def searched(folder: Path) -> Path:
    """As `search --json` prints it."""
    return written(
        folder / "search.json",
        {
            "schema": 1,
            "proposer": "evolution",
            "stopped": "budget",
            "base_loss": 0.9,
            "best_round": 2,
            "rounds": [{key: value for key, value in entry.items() if key != "plan"} for entry in rounds()],
            "plan": pruned().plan.to_dict(),
            "report": pruned().report.to_dict(),
            "notes": [],
            "a key of later versions": [1],
        },
    )


def memory(folder: Path) -> Path:
    """As a search keeps it while it runs; killed in the middle of a line."""
    start = {"what": "start", "ranking": pruned().ranking.to_dict(), "base_loss": 0.9}
    lines = [{"schema": 1, "kind": "search", "proposer": "evolution", "target": 0.55, "seed": 0}, start]
    lines += [{"what": "round", "round": entry} for entry in rounds()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "memory.jsonl").write_text(text + '{"what": "round", "rou')
    return folder / "memory.jsonl"


def rounds() -> list[dict[str, Any]]:
    """Five rounds: a start, one better, one best, one that failed, one that repeats."""
    found = []
    told = ((1.2, "start", None), (1.1, "better", None), (1.05, "better", None), (None, "failed", None), (1.1, "duplicate", 1))
    for index, (loss, verdict, again) in enumerate(told):
        entry = {"index": index, "ranking": pruned().ranking.to_dict(), "plan": pruned().plan.to_dict(), "key": "k", "kept": {}}
        found.append(entry | {"loss": loss, "verdict": verdict, "seconds": 1.5, "duplicate_of": again, "macs": pruned().plan.macs})
        found[-1]["error"] = "The loss is not finite." if verdict == "failed" else None
    return found


def comparison(folder: Path) -> Path:
    """As `compare --json` prints it: two scorers that work, and one that does not."""
    cells: list[dict[str, Any]] = []
    scorings: list[dict[str, Any]] = []
    for number, scorer in enumerate(("magnitude", "taylor")):
        for seed in range(3):
            scorings.append(
                {"scorer": scorer, "seed": seed, "seconds": 0.2, "dollars": None, "tau": 0.3 * number + 0.1 * seed, "error": None}
            )
            loss = 1.0 - 0.1 * number + 0.02 * seed
            cell = {"scorer": scorer, "mode": "width", "target": 0.6, "seed": seed, "macs": 590, "params": 9, "loss": loss + 0.5}
            cells.append(cell | {"recovered_loss": loss, "quality": 0.8, "seconds": 1.0, "error": None})
    scorings.append({"scorer": "broken", "seed": 0, "seconds": 0.1, "dollars": 0.01, "tau": None, "error": "no key"})
    base = [{"scorer": "", "mode": "", "target": 1.0, "seed": 0, "macs": 1000, "loss": 0.8, "recovered_loss": 0.7}]
    data = {"schema": 1, "model_class": "Net", "fingerprint": "f" * 64, "base_macs": 1000, "settings": {"seeds": [0, 1, 2]}, "notes": ["n"]}
    return written(
        folder / "comparison.json", data | {"oracle": {"a": 0.5}, "base": base, "scorings": scorings, "cells": cells, "summary": []}
    )


def diffusion(folder: Path) -> Path:
    """Return a run as its trainer leaves it when two of three experts are finished."""
    run = folder / "run"
    for name in ("base/samples", "expert-0", "expert-1"):
        (run / name).mkdir(parents=True)
    written(run / "config.json", {"schema": 1, "seed": 0, "noise": {"schedule": "cosine"}, "intervals": {"count": 3, "method": "measured"}})
    written(run / "base/result.json", {"schema": 1, "steps": 90, "macs": 1000, "ledger": ledger(("base", None, "training", 40, 120_000))})
    bounds = ((6.0, None, 0, 30), (-4.0, 6.0, 31, 60), (None, -4.0, 61, 99))
    members = [{"index": i, "count": 3, "low_snr_db": a, "high_snr_db": b, "first": c, "last": d} for i, (a, b, c, d) in enumerate(bounds)]
    budgets = {"fractions": [0.7, 0.75, 0.9], "steps": [15, 15, 20], "method": "measured", "k": None, "mean": 0.8, "notes": ["A note."]}
    sizes = [[{"fraction": f, "damages": [0.6 * (1.0 - f), 0.3 * (1.0 - f)]} for f in (0.5, 0.75)] for _ in members]
    remaining = [[[f, 0.1 * (1.0 - f)] for f in (0.5, 0.75, 1.0)] for _ in members]
    layout = {
        "schema": 1,
        "members": members,
        "budgets": budgets,
        "measured": {"sizes": sizes, "remaining": remaining},
        "intervals": {"method": "dynamic", "boundaries_db": [6, -4]},
        "curve": [[0, 20.0], [30, 6.1], [31, 5.9], [60, -3.9], [61, -4.1], [98, -30.0], [99, None]],
    }
    bins = [
        {"interval": i, "first": 33 * i, "last": 33 * i + 32, "snr_db": [9.0 - i, 8.0 - i, None], "base": 0.5, "expert": 0.4 + 0.1 * i}
        for i in range(3)
    ]
    written(run / "loss_by_snr.json", {"schema": 1, "images": 8, "macs": {}, "in_ledger": False, "bins": bins})
    written(run / "layout.json", layout | {"ledger": ledger(("budgets", 1, "measuring", 10, 10_000))})
    for index, macs in enumerate((700, 750)):
        spent = ledger(("expert", index, "training", 20, 60 * macs))
        written(run / f"expert-{index}/result.json", {"macs": macs, "params": 70, "steps": 60, "ledger": spent})
    lines = "".join(json.dumps({"step": step, "loss": 1 / step, "lr": 1e-3}) + "\n" for step in range(1, 1000))
    (run / "base/log.jsonl").write_text(lines + '{"step": 10')
    (run / "base/samples/0000090.png").write_bytes(png())
    (run / "base/samples/0000010.png").write_bytes(b"not a picture")
    return run


def evaluation(**changes: Any) -> dict[str, Any]:
    """Return what `diffusion evaluate --json` prints for one pipeline and number of steps."""
    estimate = {"value": 1.2, "low": 1.1, "high": 1.3}
    return {
        "schema": 1,
        "frechet": estimate,
        "kid": {"value": 0.01, "low": 0.009, "high": 0.012},
        "precision": 0.8,
        "recall": 0.7,
        "real_frechet": None,
        "features": "digits",
        "images": 500,
        "reference": "all 180 held-out images",
        "sampler": "DDIMScheduler",
        "steps": 8,
        "seed": 0,
        "sampling_macs": 8_000_000,
        "relative_macs": 0.8,
        "seconds_per_image": 0.0125,
        "params": 12_000,
        "losses": [0.1, 0.2],
        "notes": ["Few images."],
    } | changes


def evaluations(folder: Path) -> Path:
    """Return the evaluations of two pipelines at two numbers of steps, as one call prints them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        {"pipeline": pipeline} | evaluation(steps=steps, sampling_macs=steps * macs, frechet={"value": value, "low": value, "high": value})
        for pipeline, macs, values in (("runs/a/pipeline", 1_000_000, (2.0, 1.5)), ("runs/b/pipeline", 600_000, (1.9, 1.4)))
        for steps, value in zip((8, 12), values, strict=True)
    ]
    return written(folder / "evaluation.json", {"schema": 1, "evaluations": found})


def ledger(*entries: tuple[str, int | None, str, int, int]) -> dict[str, Any]:
    names = ("stage", "interval", "what", "images", "macs")
    return {"schema": 1, "limit_macs": None, "entries": [dict(zip(names, entry, strict=True)) for entry in entries]}


def png() -> bytes:
    """One grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")


def block(name: str, inputs: list[str]) -> dict[str, Any]:
    """Return a block as `describe --json` prints it."""
    shape = {"macs": 1000, "params": 100, "resolution": [8, 8], "widths": [4, 4]}
    return {"id": name, "kind": "residual", "class_name": "Residual", **shape, "inputs": inputs, "groups": [], "removable": True}


def scored(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a ranking of blocks as `score --json` prints it."""
    scores = {entry["id"]: index * 7 % len(blocks) / len(blocks) for index, entry in enumerate(blocks)}
    told = {"schema": 1, "scorer": "given", "seed": 0, "confidence": None, "scores": scores, "channel_scores": {}, "notes": []}
    return {**told, "unreliable": None, "model_class": "Given", "fingerprint": "0" * 64, "blocks": blocks}


def written(path: Path, data: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


RESULTS: Mapping[str, Callable[[Path], Path]] = {
    "network": network,
    "older": older,
    "plan": plan,
    "score": ranking,
    "score-long": long,
    "structure": described,
    "search": searched,
    "memory": memory,
    "comparison": comparison,
    "diffusion": diffusion,
    "evaluation": evaluations,
    "hostile": hostile,
}
"""Name -> writes the result into a folder and returns its path."""
