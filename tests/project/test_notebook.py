"""The notebooks of examples/ run from top to bottom, and print what they are stored with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MARK = "---- cell ----"


def cells(path: Path) -> list[dict]:
    """Code cells of a notebook."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """In a process of its own. Weights trained on another processor lead to other widths and accuracies; the rest is printed as stored."""
    code = f"\nprint({MARK!r})\n".join("".join(cell["source"]) for cell in cells(path))
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    printed = [part.strip() for part in found.stdout.split(MARK)]
    stored = ["".join("".join(output.get("text", "")) for output in cell["outputs"]).strip() for cell in cells(path)]
    assert len(printed) == len(stored)
    for now, before in zip(printed, stored, strict=True):
        assert figureless(now) == figureless(before)
    shares = [float(share) for share in re.findall(r"MACs [\d,]+ of [\d,]+ \(([\d.]+)%\)", "\n".join(printed))]
    assert shares
    assert all(48 < share <= 50 for share in shares)
    accuracies = [float(text.rpartition("accuracy ")[2]) for text in printed if "accuracy " in text]
    whole, cut, compensated, recovered = accuracies
    assert whole > 0.9
    assert compensated > cut - 0.01
    assert recovered > max(cut, whole - 0.05)


def figureless(text: str) -> list[str]:
    """Return the first lines of a cell's output, with a mark for each number and none of the space that aligns them."""
    return [" ".join(re.sub(r"\d[\d,.]*", "#", line).split()) for line in text.split("accuracy")[0].splitlines()[:3]]
