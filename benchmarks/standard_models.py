"""Prune small networks of transformers and diffusers with uniform=True, and load each as a plain one; the budget that uniformity costs.

    python benchmarks/standard_models.py            # several minutes

Each network is pruned to 0.8 and 0.6 of its MACs, written as a plain folder, loaded in a process without proxyprune, and compared bit for
bit. Writes results/standard_models.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from common import environment, print_table, save

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "shared"))

from standard_networks import STANDARD

import proxyprune as pp
from proxyprune.saving.plain_folder import PlainFolder, differences_elsewhere, write_plain
from proxyprune.standard.blueprint import written

TARGETS = (0.8, 0.6)


def _measure(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    folders: list[tuple[dict[str, Any], PlainFolder]] = []
    for name, network in STANDARD.items():
        for target in TARGETS:
            row: dict[str, Any] = {"network": name, "target": target, "mode": network.mode}
            rows.append(row)
            try:
                result = pp.prune(network.build(), network.inputs(), target, mode=network.mode, uniform=True)
                plain = write_plain(result, folder / str(len(rows)))
            except pp.ProxyPruneError as error:
                row |= {"share": None, "verdict": "refused", "reason": str(error)}
                continue
            changed = {written(path): value for path, value in plain.standard.config.numbers.items()}
            row |= {"share": round(result.plan.macs / result.plan.base_macs, 4), "config": changed, "notes": list(result.plan.notes)}
            folders.append((row, plain))
    for (row, _), problem in zip(folders, differences_elsewhere([plain for _, plain in folders]), strict=True):
        row["verdict"] = "equal bit for bit" if problem is None else problem
    return rows


def main() -> None:
    """Measure, print and save."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _measure(Path(folder))
    shown = [{key: str(row.get(key, "")) for key in ("network", "target", "mode", "share", "verdict")} for row in rows]
    print_table("Plain folders after uniform=True", ["network", "target", "mode", "share", "verdict"], shown)
    save("standard_models", {"environment": environment(), "seed": 0, "scorer": "magnitude", "runs": 1, "rows": rows})


if __name__ == "__main__":
    main()
