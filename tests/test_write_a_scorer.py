"""docs/how-to/write-a-scorer.md: its code blocks, as they stand there, are files that work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how-to" / "write-a-scorer.md"
BLOCK = re.compile(r'^```(?P<language>\w+) title="(?P<name>[^"]+)"\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    return {match["name"]: match["code"] for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The reader's folder after following the page."""
    folder = tmp_path_factory.mktemp("reader")
    for name, code in blocks().items():
        (folder / name).write_text(code, encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_code_block_is_a_file():
    """No block of the page is left out of these tests."""
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * len(blocks())
    assert list(blocks()) == ["spread.py", "test_spread.py", "noisy_loss.py", "use.py", "pyproject.toml"]


def test_the_scorer_passes_its_contract_test(folder):
    """The reader's own test, run as the reader would."""
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_spread.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_skeleton_and_the_example_of_use_work(folder):
    """The second scorer keeps the contract too, and the script of step 3 runs."""
    check = "from noisy_loss import LossScorer; from proxyprune.testing import check_scorer; check_scorer(LossScorer())"
    for command in (("-c", check), ("use.py",)):
        done = run(folder, *command)
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
