"""Tables of docs/benchmarks/real-networks.md from results/real_networks.json: means over draws, with lowest and highest.

python benchmarks/real_tables.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import RESULTS

Cells = Sequence[Mapping[str, Any]]


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean, and in brackets lowest and highest of several."""
    found = [value for value in values if value is not None]
    if not found:
        return ""
    mean = f"{statistics.fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ({min(found):.{digits}f} to {max(found):.{digits}f})"


def arms(cells: Cells) -> list[str]:
    """Names of arms: ours in the order of the file, then peers."""
    ours = dict.fromkeys(cell["scorer"] for cell in cells if not cell.get("peer"))
    return [*ours, *dict.fromkeys(cell["scorer"] for cell in cells if cell.get("peer"))]


def rows(cells: Cells, text: str, ratios: Iterable[float], digits: int) -> list[str]:
    """Lines of one table: for each ratio the share that is left, and the figures as cut and repaired."""
    lines = []
    for arm in arms(cells):
        columns = []
        for ratio in ratios:
            own = [cell for cell in cells if cell["scorer"] == arm and cell["ratio"] == ratio]
            failed = [cell["error"] for cell in own if "error" in cell]
            good = [cell for cell in own if "error" not in cell]
            pairs = [spread([cell[key][text] for cell in good], digits) for key in ("without", "with")]
            columns += [failed[0].partition(":")[0], ""] if failed and not good else pairs
        lines.append(f"| {arm} | {' | '.join(columns)} |")
    return lines


def main() -> None:
    """Print one table for each network and text."""
    content = json.loads((RESULTS / "real_networks.json").read_text(encoding="utf-8"))
    for network in dict.fromkeys(cell["network"] for cell in content["cells"]):
        cells = [cell for cell in content["cells"] if cell["network"] == network]
        ratios = sorted({cell["ratio"] for cell in cells}, reverse=True)
        for text, unpruned in content["unpruned"][network].items():
            print(f"\n{network}, {text}, unpruned {unpruned:.2f}\n")
            print("| arm |" + "".join(f" {ratio:g}, as cut | {ratio:g}, repaired |" for ratio in ratios))
            print("|---|" + "---|---|" * len(ratios))
            print("\n".join(rows(cells, text, ratios, 1 if unpruned > 10.0 else 3)))


if __name__ == "__main__":
    main()
