"""Measure one GPU in ten minutes: training throughput, sampling time against MACs, kill and resume, and the experiment at 32 pixels.

    python benchmarks/gpu.py                                  # on a machine with a GPU
    python benchmarks/gpu.py --parts speed resume             # without the experiment
    python benchmarks/gpu.py --tiny                           # proves on a CPU that everything runs; its figures mean nothing

`speed`: optimizer steps in float32 (TF32), bf16 and bf16 compiled, and forward passes of networks cut to half of their MACs with widths
rounded to 1, 8, 32 and 64, eager and compiled, for the U-Net of DDPM and a class-conditional DiT. Every process first warms up and compiles
beside the others; then they are timed one after the other, alone on the card.
`resume`: a training run that is killed three times against two that are not.
`experiment`: the arms of frontier.py at 32 pixels, for as long as --minutes allows.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, print_table
from kill_and_resume import logged, tensors
from torch import nn

import proxyprune as pp
from proxyprune.diffusion import StepAdaptiveConfig

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
FRACTION = 0.5
GO, READY = "go", "ready"


@dataclass(frozen=True)
class Sizes:
    """Sizes of networks, batches and repetitions.

    Attributes:
        unet: Settings of the U-Net, beside those that both sizes share.
        dit: Settings of the DiT.
        batch: Images of a training step and of a forward pass.
        steps: Training steps that are timed.
        passes: Forward passes that are timed.
        roundings: Multiples that widths are rounded to.
    """

    unet: Mapping[str, Any]
    dit: Mapping[str, Any]
    batch: int
    steps: int
    passes: int
    roundings: tuple[int, ...]


_LEVELS = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
WHOLE = Sizes(
    {
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": _LEVELS,
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(_LEVELS)),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12},
    batch=256,
    steps=20,
    passes=20,
    roundings=(1, 8, 32, 64),
)
TINY = Sizes(
    {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2},
    batch=2,
    steps=2,
    passes=3,
    roundings=(1, 8),
)


def network(kind: str, sizes: Sizes) -> tuple[nn.Module, Callable[[int], dict[str, torch.Tensor]]]:
    """Build a denoiser with random weights, and what makes its inputs for so many images of 32 pixels."""
    from diffusers import DiTTransformer2DModel, UNet2DModel

    torch.manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.randn(count, 3, 32, 32)

    if kind == "U-Net":
        unet = UNet2DModel(sample_size=32, in_channels=3, out_channels=3, attention_head_dim=None, **sizes.unet)
        return unet, lambda count: {"sample": images(count), "timestep": torch.full((count,), 10)}
    dit = DiTTransformer2DModel(in_channels=3, out_channels=3, sample_size=32, patch_size=2, num_embeds_ada_norm=10, **sizes.dit)
    return dit, lambda count: {
        "hidden_states": images(count),
        "timestep": torch.full((count,), 10),
        "class_labels": torch.arange(count) % 10,
    }


def placed(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Move inputs to the device; images in a precision."""
    return {name: value.to(DEVICE, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def synchronise() -> None:
    """Wait for the card."""
    if CUDA:
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Time single calls, by the events of the card where there is one."""
    found = []
    for _ in range(repeats):
        if CUDA:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            run()
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last))
        else:
            started = time.perf_counter()
            run()
            found.append(1000 * (time.perf_counter() - started))
    return found


Timing = Callable[[], dict[str, Any]]
"""Times what was warmed up."""


def training(kind: str, mode: str, sizes: Sizes) -> Timing:
    """Warm up the steps of the trainer, with all that it does in one: draw, noise, forward, backward, clip, AdamW, averaged weights."""
    from accelerate import Accelerator

    from proxyprune.diffusion import Ledger, NoiseConfig, NoiseSchedule
    from proxyprune.diffusion.config.run_config import StageConfig
    from proxyprune.diffusion.data.image_data import ImageData
    from proxyprune.diffusion.process.denoiser_call import Calling
    from proxyprune.diffusion.process.objective import Objective, Process
    from proxyprune.diffusion.training.batches import Draws
    from proxyprune.diffusion.training.state import Training
    from proxyprune.diffusion.training.step import TrainingStep

    model, inputs = network(kind, sizes)
    conditional = "class_labels" in inputs(1)
    pictures, labels = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8), torch.arange(4096) % 10
    data = ImageData("random", pictures, pictures[:16], *((labels, labels[:16], 10) if conditional else ()))
    process = Process(NoiseSchedule.of(NoiseConfig(schedule="squaredcos_cap_v2")))
    draws, stage = Draws(data, process, 0, "base", 0, 999, sizes.batch), StageConfig()
    accelerator = Accelerator(
        mixed_precision="no" if mode == "float32" else "bf16", cpu=not CUDA, dynamo_backend="inductor" if "compiled" in mode else "no"
    )
    state = Training.begin(model.to(DEVICE).train(), stage, Ledger())
    opened = TrainingStep.prepared(state, Objective(Calling.of(model, conditional=conditional)), stage.clip, accelerator)
    trainer, count = opened.__enter__(), 0

    def step() -> None:
        nonlocal count
        outcome = trainer.take(draws.batch(count, DEVICE), 1e-4, count)
        count += 1
        if outcome.problem is not None:
            raise SystemExit(outcome.problem)

    for _ in range(3):
        step()

    def timing() -> dict[str, Any]:
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        found = milliseconds(step, sizes.steps)
        memory = torch.cuda.max_memory_allocated() / 2**30 if CUDA else None
        return {
            "ms": statistics.median(found),
            "images_per_s": 1000 * sizes.batch / statistics.median(found),
            "gib": memory,
            "all_ms": found,
        }

    return timing


def sampling(kind: str, rounding: str, mode: str, sizes: Sizes) -> Timing:
    """Warm up forward passes in bf16, of the whole network ("whole") or of one cut to half of its MACs."""
    model, inputs = network(kind, sizes)
    base = macs = pp.trace(model.eval(), inputs(1), probe=False).macs
    if rounding != "whole":
        result = pp.prune(model, inputs(1), target=FRACTION, round_to=int(rounding))
        model, macs = result.model, result.plan.macs
    model = model.to(DEVICE, torch.bfloat16).eval()
    forward = torch.compile(model) if mode == "compiled" else model
    batch = placed(inputs(sizes.batch), torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            forward(**batch)

    for _ in range(3):
        run()

    def timing() -> dict[str, Any]:
        found = milliseconds(run, sizes.passes)
        low, middle, high = statistics.quantiles(found, n=4)
        return {
            "macs": macs,
            "macs_share": macs / base,
            "ms": middle,
            "low": low,
            "high": high,
            "params": sum(p.numel() for p in model.parameters()),
        }

    return timing


def worker(task: str, sizes: Sizes) -> None:
    """Warm up, report it, wait for the turn, time, print the figures as a line of JSON."""
    if CUDA:
        torch.set_float32_matmul_precision("high")
    what, kind, *rest = task.split("/")
    timing = training(kind, *rest, sizes) if what == "training" else sampling(kind, *rest, sizes)
    synchronise()
    print(READY, flush=True)
    sys.stdin.readline()
    print(json.dumps(timing()), flush=True)


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time training and sampling, one process for each network and mode."""
    sizes = TINY if arguments.tiny else WHOLE
    modes = ("float32", "bf16") + (() if arguments.no_compile else ("bf16 compiled",))
    tasks = [f"training/{kind}/{mode}" for kind in ("U-Net", "DiT") for mode in modes]
    for mode in ("eager",) + (() if arguments.no_compile else ("compiled",)):
        tasks += [f"sampling/{kind}/{cut}/{mode}" for kind in ("U-Net", "DiT") for cut in ("whole", *map(str, sizes.roundings))]
    command = [sys.executable, __file__, *(["--tiny"] if arguments.tiny else []), "--worker"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    rows, waiting = [], list(tasks)
    while waiting:
        part, waiting = waiting[: arguments.processes], waiting[arguments.processes :]
        jobs = {
            task: subprocess.Popen(
                [*command, task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings
            )
            for task in part
        }
        ready = {task: _line(job, READY) for task, job in jobs.items()}
        for task, job in jobs.items():
            job_out, errors = job.communicate(GO + "\n" if ready[task] else None)
            lines = job_out.strip().splitlines()
            if job.returncode or not lines:
                rows.append({"task": task, "error": errors.strip()[-600:]})
                continue
            rows.append({"task": task, **json.loads(lines[-1])})
    whole = {row["task"]: row["ms"] for row in rows if "/whole/" in row["task"] and "ms" in row}
    for row in rows:
        what, kind, *rest = row["task"].split("/")
        if what == "sampling" and "ms" in row:
            row["time_share"] = row["ms"] / whole.get(f"sampling/{kind}/whole/{rest[1]}", float("nan"))
    shown = [{key: row.get(key) for key in ("task", "ms", "images_per_s", "gib", "macs_share", "time_share", "error")} for row in rows]
    print_table(f"batch {sizes.batch}, 32 pixels", list(shown[0]), shown)
    return {"sizes": asdict(sizes), "fraction": FRACTION, "rows": rows}


def _line(job: subprocess.Popen[str], expected: str) -> bool:
    """Read a process's output up to a line; return False if it ends before."""
    assert job.stdout is not None
    return any(line.strip() == expected for line in job.stdout)


RESUMED: Mapping[str, Any] = {
    "compute.reference_steps": 400,
    "intervals.count": 2,
    "pruning.calibration_batches": 1,
    "run.checkpoint_every": 10,
    "run.log_every": 1,
}


def resume(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train two runs that are left alone and one that is killed, and compare their experts bit by bit."""
    values = dict(RESUMED) | {
        "run.cpu": not CUDA,
        "run.mixed_precision": "bf16" if CUDA else "no",
        "run.batch_size": 16 if arguments.tiny else 64,
    }
    values |= {"compute.reference_steps": 60} if arguments.tiny else {}
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "config.json").write_text(StepAdaptiveConfig.preset("digits-small").with_values(values).to_text(), encoding="utf-8")
        program = [sys.executable, "-m", "proxyprune", "diffusion", "train", "--config", str(folder / "config.json"), "--json", "--out"]

        def start(name: str) -> subprocess.Popen[bytes]:
            log = (folder / f"{name}.log").open("ab")
            return subprocess.Popen([*program, str(folder / name)], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})

        others, kills = [start("first"), start("second")], []
        for moment in (0.2, 0.5, 0.8):
            process = start("killed")
            wanted = moment * values["compute.reference_steps"]
            while process.poll() is None and logged(folder / "killed") < wanted:
                time.sleep(0.01)
            time.sleep(chance.random() * 0.05)
            kills.append({"asked_at_step": wanted, "logged_steps": logged(folder / "killed"), "was_running": process.poll() is None})
            process.send_signal(signal.SIGKILL)
            process.wait()
        codes = [start("killed").wait(), *(other.wait() for other in others)]
        if any(codes):
            logs = {name: (folder / f"{name}.log").read_text(errors="replace")[-600:] for name in ("first", "second", "killed")}
            return {"error": f"exit codes {codes}", "logs": logs}
        first, second, killed = (tensors(folder / name) for name in ("first", "second", "killed"))

    def difference(other: Mapping[str, torch.Tensor]) -> float:
        if first.keys() != other.keys() or any(first[name].shape != other[name].shape for name in first):
            return float("inf")
        return max(float((first[name].double() - other[name].double()).abs().max()) for name in first)

    found = {"settings": values, "kills": kills, "tensors": len(first)}
    found |= {"difference_of_two_runs": difference(second), "difference_after_kills": difference(killed)}
    print(found)
    return found


def experiment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the arms of frontier.py; their figures go into a file of their own."""
    scale = "tiny" if arguments.tiny else "large"
    program = [sys.executable, str(Path(__file__).parent / "frontier.py"), "--scale", scale, "--results", str(arguments.results)]
    program += ["--workers", str(arguments.workers), "--minutes", str(arguments.minutes), "--seeds", *map(str, arguments.seeds)]
    program += ["--folder", str(arguments.folder)] if arguments.folder else []
    started = time.perf_counter()
    code = subprocess.run(program, check=False).returncode
    return {"file": f"frontier_{scale}.json", "exit": code, "seconds": time.perf_counter() - started}


PARTS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"speed": speed, "resume": resume, "experiment": experiment}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small networks, a few steps, on any machine")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--processes", type=int, default=12, help="that warm up at a time")
    parser.add_argument("--workers", type=int, default=12, help="arms that train at a time")
    parser.add_argument("--minutes", type=float, default=6.0, help="for the experiment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="runs of the experiment")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and plot go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, TINY if arguments.tiny else WHOLE)
        return
    name = torch.cuda.get_device_name() if CUDA else "cpu"
    path = arguments.results / ("gpu_tiny.json" if arguments.tiny else "gpu.json")
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= {"environment": copy.deepcopy(environment()), "device": name}
    for part in arguments.parts:
        started = time.perf_counter()
        content[part] = PARTS[part](arguments) | {"wall_seconds": time.perf_counter() - started}
        arguments.results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {time.perf_counter() - started:.0f} s, wrote {path.name}", flush=True)


if __name__ == "__main__":
    main()
