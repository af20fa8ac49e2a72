"""The notebooks of examples/ run from top to bottom, and print what they are stored with."""

from __future__ import annotations

import json
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
    """In a process of its own; accuracies may differ by a few digits from one processor to another, the rest is printed as stored."""
    code = f"\nprint({MARK!r})\n".join("".join(cell["source"]) for cell in cells(path))
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    printed = [part.strip() for part in found.stdout.split(MARK)]
    stored = ["".join("".join(output.get("text", "")) for output in cell["outputs"]).strip() for cell in cells(path)]
    assert len(printed) == len(stored)
    for now, before in zip(printed, stored, strict=True):
        assert now.split("accuracy")[0].splitlines()[:3] == before.split("accuracy")[0].splitlines()[:3]
    accuracies = [float(text.rpartition("accuracy ")[2]) for text in printed if "accuracy " in text]
    whole, cut, compensated, recovered = accuracies
    assert whole > 0.9
    assert compensated > cut - 0.01
    assert recovered > max(cut, whole - 0.05)
