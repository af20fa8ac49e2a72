"""The examples run as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import proxyprune as pp
from proxyprune.cli import main
from proxyprune.modelfile import load_model_file

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"demo.py", "custom_scorer.py", "step_adaptive.py", "llama_gguf.py"}  # the last is run by tests/standard/test_gguf.py
WITHOUT_WEIGHTS = {"stable_diffusion.py"}
MODEL_FILES = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in SCRIPTS)


@pytest.mark.parametrize("path", [p for p in MODEL_FILES if p.name not in WITHOUT_WEIGHTS], ids=lambda path: path.stem)
def test_model_file(path, tmp_path):
    """Each model file is pruned by its own loss to 0.6, within 1 % of the budget, and loads and runs again."""
    arguments = ["prune", "--model", str(path), "--target", "0.6", "--scorer", "taylor", "--out", str(tmp_path / "small"), "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["report"]
    assert 0.59 * report["base_macs"] < report["macs"] <= 0.6 * report["base_macs"]
    file = load_model_file(str(path))
    small = pp.load(tmp_path / "small", file.build_model)
    assert pp.trace(small, file.example_inputs(), probe=False).macs == report["macs"]


def test_stable_diffusion_is_planned_without_weights(tmp_path):
    """Stable Diffusion's U-Net is described and planned at 0.7 from shapes alone."""
    destination = tmp_path / "plan.json"
    command = ["prune", "--model", str(EXAMPLES / "stable_diffusion.py"), "--fake-weights", "--plan-only", "--scorer", "random"]
    result = CliRunner().invoke(main, [*command, "--target", "0.7", "--out", str(destination)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    plan = pp.PrunePlan.from_json(destination)
    assert plan.base_params == 859_520_964  # the published network
    assert 0.69 * plan.base_macs < plan.macs <= 0.7 * plan.base_macs


def test_custom_scorer_runs():
    """The script with a scorer of its own keeps the contract and says what it left."""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # threads of parallel tests get in each other's way
    found = subprocess.run([sys.executable, EXAMPLES / "custom_scorer.py"], capture_output=True, text=True, check=True, env=alone).stdout
    (left,) = re.findall(r"left: ([\d.]+)% of the MACs", found)
    assert 49 < float(left) <= 50  # the channels that go depend on trained weights, and so on the processor
    before, after = map(float, re.findall(r"loss ([\d.e+-]+) before, ([\d.e+-]+) after", found)[0])
    assert before < 0.001
    assert after < 0.001


def test_step_adaptive_script_runs(tmp_path):
    """The script plans, trains experts, and compares them with one full-size model at the same compute; here with few steps."""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / "step_adaptive.py", "--out", tmp_path, "--steps", "40", "--samples", "64"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=alone).stdout
    assert "one full-size model" in found
    assert (tmp_path / "side-by-side.png").is_file()
    spent = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert 0 < spent["spent_macs"] <= spent["limit_macs"]


def test_every_example_is_tried():
    """A new example is either a model file, which is tried above, or named as a script."""
    for path in MODEL_FILES:
        assert "def build_model" in path.read_text(encoding="utf-8"), f"{path.name} is no model file: name it in SCRIPTS and test it"
