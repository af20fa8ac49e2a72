"""docs/how-to/write-a-scorer.md: what its files make keeps the contract and registers. `test_docs_run.py` runs the files themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, fences

PAGE = ROOT / "docs" / "how-to" / "write-a-scorer.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the reader's folder after following the page."""
    folder = tmp_path_factory.mktemp("reader")
    for fence in fences(PAGE):
        (folder / fence.title).write_text(fence.code, encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_code_block_is_a_file():
    """The page says the name of every file that it shows."""
    assert [fence.title for fence in fences(PAGE)] == ["spread.py", "test_spread.py", "noisy_loss.py", "use.py", "pyproject.toml"]


def test_the_skeleton_keeps_the_contract(folder):
    """The second scorer of the page passes the suite too."""
    done = run(folder, "-c", "from noisy_loss import LossScorer; from proxyprune.testing import check_scorer; check_scorer(LossScorer())")
    assert done.returncode == 0, done.stderr


def test_the_distribution_registers_the_scorer(folder, tmp_path):
    """Built as the page says, the plug-in is found by name."""
    built = run(folder, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(folder))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("proxyprune_spread-*.whl")
    put = run(folder, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    assert put.returncode == 0, put.stderr
    code = "import proxyprune as pp; print([(i.origin, i.error) for i in pp.scorers() if i.name == 'spread'])"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert found.stdout.strip() == "[('proxyprune-spread 0.1.0', None)]"
