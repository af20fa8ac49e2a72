"""Tables of docs/benchmarks/real-networks.md from results/real_networks.json: means over draws, with lowest and highest.

python benchmarks/real_tables.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
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


def rows(cells: Cells, text: str, digits: int) -> list[str]:
    """Lines of one table: the figures as cut and repaired, and how many draws there are."""
    lines = []
    for arm in arms(cells):
        own = [cell for cell in cells if cell["scorer"] == arm]
        good = [cell for cell in own if "error" not in cell]
        columns = [spread([cell[key][text] for cell in good], digits) for key in ("without", "with")]
        if good and all(cell["with"] == cell["without"] for cell in good):
            columns[1] = ""
        lines.append(f"| {arm} | {' | '.join(columns) if good else own[0]['error'].partition(':')[0] + ' |'} | {len(own)} |")
    return lines


def main() -> None:
    """Print one table for each network, text and ratio."""
    content = json.loads((RESULTS / "real_networks.json").read_text(encoding="utf-8"))
    for network, texts in content["unpruned"].items():
        cells = [cell for cell in content["cells"] if cell["network"] == network]
        for ratio, (text, unpruned) in product(sorted({cell["ratio"] for cell in cells}, reverse=True), texts.items()):
            print(f"\n{network} at {ratio:g}, {text}, unpruned {unpruned:.4g}\n")
            print("| arm | as cut | repaired | draws |\n|---|---|---|---|")
            print("\n".join(rows([cell for cell in cells if cell["ratio"] == ratio], text, 1 if unpruned > 10.0 else 3)))


if __name__ == "__main__":
    main()
