"""The paths of a run's files: those that runs of earlier versions have, and no torch to know them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from proxyprune.diffusion.run_folder import RunFolder


def test_paths_are_those_of_earlier_runs():
    """A run that was begun before can be resumed, sampled and reported."""
    run = RunFolder(Path("run"))
    expert = run.expert(2)
    found = (run.config, run.images, run.layout, run.ledger, run.losses, run.pipeline, run.base.result, run.base.weights)
    found += (expert.result, expert.checkpoint, expert.log, expert.grid(40), expert.teacher, expert.network, expert.cut(1).plan)
    found += (expert.cut(1).surgery, expert.cut(1).ranking)
    expected = (
        "config.json images.json layout.json ledger.json loss_by_snr.json pipeline base/result.json base/base.safetensors "
        "expert-2/result.json expert-2/checkpoint.safetensors expert-2/log.jsonl expert-2/samples/0000040.png expert-2/teacher.safetensors "
        "expert-2/network expert-2/cut-1/plan.json expert-2/cut-1/surgery.json expert-2/cut-1/ranking.json"
    )
    assert [path.as_posix() for path in found] == [f"run/{name}" for name in expected.split()]


def test_experts_are_found_in_the_order_of_their_intervals(tmp_path):
    """Expert 10 comes after expert 9, and other folders are no experts."""
    for name in ("expert-0", "expert-10", "expert-9", "expert-x", "base"):
        (tmp_path / name).mkdir()
    assert [folder.path.name for folder in RunFolder(tmp_path).experts()] == [f"expert-{index}" for index in range(11)]
    assert RunFolder(tmp_path / "missing").experts() == []
    assert RunFolder(tmp_path / "missing").stages() == []


def test_paths_need_no_torch():
    """Reports read runs where torch is not installed."""
    code = "import sys, proxyprune.diffusion.run_folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
