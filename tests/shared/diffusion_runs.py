"""Small runs that tests share: a U-Net of 18,000 parameters on digits, and how it is trained in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from forked import Forked
from safetensors.torch import load_file

from proxyprune.diffusion import StepAdaptiveConfig

ROOT = Path(__file__).parents[2]
NETWORK = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def small_config(folder: Path, **changes: Any) -> StepAdaptiveConfig:
    """Return a run of a few seconds; `changes` name settings with __ for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / "network.json"
    network.write_text(json.dumps(NETWORK), encoding="utf-8")
    values = {
        "model": str(network),
        "compute.reference_steps": 40,
        "intervals.count": 2,
        "pruning.calibration_batches": 1,
        "pruning.calibration_images": 16,
        "run.batch_size": 16,
        "run.cpu": True,
        "run.log_every": 1,
        "run.checkpoint_every": 4,
        "run.loss_bins": 4,
        "run.loss_images": 8,
    }
    return StepAdaptiveConfig.preset("digits").with_values(values | {name.replace("__", "."): value for name, value in changes.items()})


def arguments(config: StepAdaptiveConfig, out: Path, *extra: str) -> list[str]:
    """Return the arguments of the command that trains, and write its configuration beside the run."""
    path = out.parent / f"{out.name}.config.json"
    path.write_text(config.to_text(), encoding="utf-8")
    return ["diffusion", "train", "--config", str(path), "--out", str(out), *extra]


ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def start(config: StepAdaptiveConfig, out: Path, *, processes: int = 1, extra: tuple[str, ...] = ()) -> Forked:
    """Run the command line's `diffusion train` in processes of its own."""
    return Forked("proxyprune", arguments(config, out, *extra), os.environ | ON_CPU, processes=processes)


def launch(config: StepAdaptiveConfig, out: Path, processes: int) -> subprocess.Popen[str]:
    """Run the same by torchrun, as users start it."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *torchrun, "proxyprune", *arguments(config, out)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ON_CPU, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def logged(out: Path, stage: str, steps: int, process: Forked) -> None:
    """Wait until a run has logged some steps of a stage."""
    log, deadline = out / stage / "log.jsonl", time.monotonic() + 600
    while not (log.is_file() and log.read_text(encoding="utf-8").count("\n") >= steps):
        assert process.poll() is None, process.text("err")
        assert time.monotonic() < deadline, f"{stage} did not reach step {steps}: {process.text('err')}"
        time.sleep(0.005)


def losses(run: Path, stage: str) -> list[float]:
    """Return logged losses of a stage, by step."""
    lines = [json.loads(line) for line in (run / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def weights(run: Path) -> dict[str, Any]:
    """Every tensor of the final pipeline, by file and name."""
    found = {}
    for path in sorted((run / "pipeline" / "experts").rglob("model.safetensors")):
        found |= {f"{path.parent.name}/{name}": tensor for name, tensor in load_file(path).items()}
    return found
