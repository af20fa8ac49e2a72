"""Kill a training run at random moments, resume it each time, and compare the final weights with those of a run that was left alone.

    python benchmarks/kill_and_resume.py --kills 20

Every kill is a SIGKILL of the whole process at a moment drawn from the seed; what counts is equality of every bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, save
from safetensors.torch import load_file

from proxyprune.diffusion import StepAdaptiveConfig

SETTINGS: dict[str, Any] = {
    "compute.reference_steps": 400,
    "intervals.count": 3,
    "pruning.rounds": 2,
    "pruning.calibration_batches": 1,
    "experts.teacher": "base",
    "run.batch_size": 16,
    "run.cpu": True,
    "run.checkpoint_every": 1,
    "run.log_every": 1,
}


def command(folder: Path, name: str) -> list[str]:
    program = [sys.executable, "-m", "proxyprune", "diffusion", "train"]
    return [*program, "--config", str(folder / "config.json"), "--out", str(folder / name), "--json"]


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(folder, name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def logged(folder: Path) -> int:
    """Return steps in the logs, over all stages."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("*/log.jsonl"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((folder / "pipeline" / "experts").rglob("model.safetensors")):
        found |= {f"{path.parent.name}/{name}": value for name, value in load_file(path).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "config.json").write_text(StepAdaptiveConfig.preset("digits").with_values(SETTINGS).to_text(), encoding="utf-8")
        assert start(folder, "whole").wait() == 0
        steps = logged(folder / "whole")
        moments, kills = sorted(chance.randrange(steps) for _ in range(arguments.kills)), []
        for moment in moments:
            process = start(folder, "killed")
            while process.poll() is None and logged(folder / "killed") < moment:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)  # anywhere within a step, a checkpoint or a cut
            before = process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append({"asked_at_step": moment, "logged_steps": logged(folder / "killed"), "was_running": before})
            print(kills[-1], flush=True)
        assert start(folder, "killed").wait() == 0
        expected, found = tensors(folder / "whole"), tensors(folder / "killed")
        same = expected.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in expected.items())
        logs = all(_losses(folder / "whole" / s.name) == _losses(folder / "killed" / s.name) for s in (folder / "whole").glob("*-*"))
    result = {"kills": kills, "steps": steps, "tensors": len(expected), "bit_identical": same, "same_losses": logs}
    print({key: value for key, value in result.items() if key != "kills"})
    save("kill_and_resume", {"environment": environment(), "seed": arguments.seed, "settings": SETTINGS, **result})
    if not (same and logs):
        raise SystemExit("the resumed run differs")


def _losses(stage: Path) -> list[float]:
    path = stage / "log.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


if __name__ == "__main__":
    main()
