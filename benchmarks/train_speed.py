"""Training throughput: our loop, a bare PyTorch loop, the steps of diffusers' unconditional example, and denoising-diffusion-pytorch.

    python benchmarks/train_speed.py

All train the same network on the same batch size and take turns in one process, a few steps each; the last brings a trainer of its own
and is given the network through a wrapper. Times are processor time of the one thread that computes, so that other work on the machine
does not count; wall time is in the JSON too. denoising-diffusion-pytorch is left out, and said to be, when it is not installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save
from torch import Tensor, nn
from torch.nn import functional

from proxyprune.diffusion import Ledger, StepAdaptiveConfig
from proxyprune.diffusion.data.image_data import to_float
from proxyprune.diffusion.process.objective import Objective
from proxyprune.diffusion.run_folder import RunFolder, StageFolder
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.training.loop import Loop
from proxyprune.diffusion.training.make_accelerator import make_accelerator
from proxyprune.diffusion.training.state import Phase, Training

Run = Callable[[int], None]
"""Trains for so many steps."""


def ours(setup: Setup, folder: Path) -> Run:
    """`proxyprune`'s loop with everything that it does: average, clip, log, judge divergence, checkpoints as configured."""
    stage = setup.config.base
    training = Training.begin(setup.base_model(), stage, Ledger())
    loop = Loop(
        "base",
        StageFolder(folder),
        stage,
        setup.config.run,
        setup.draws("base", stage, 0, 999),
        Objective(setup.calling),
        setup.accelerator,
    )

    def run(steps: int) -> None:
        training.phase = Phase(0, training.step, training.step + steps, (0.1, 0.2))
        loop.train(training)

    return run


def bare(setup: Setup, _: Path) -> Run:
    """Forward, loss, backward, AdamW; nothing else."""
    from diffusers import DDPMScheduler

    model = setup.base_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), setup.config.base.learning_rate, fused=True)
    schedule = DDPMScheduler(beta_schedule=setup.config.noise.schedule)
    size = setup.config.run.batch_size

    def run(steps: int) -> None:
        for _ in range(steps):
            images = to_float(setup.data.train[torch.randint(0, len(setup.data.train), (size,))])
            noise, timesteps = torch.randn_like(images), torch.randint(0, 1000, (size,))
            loss = functional.mse_loss(model(schedule.add_noise(images, noise, timesteps), timesteps).sample, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def diffusers_example(setup: Setup, _: Path) -> Run:
    """Return what diffusers' unconditional example does in a step: loader, accelerate, noise, clip, AdamW, cosine schedule, EMAModel."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = setup.accelerator
    model = setup.base_model().train()
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    schedule = DDPMScheduler(beta_schedule=setup.config.noise.schedule)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    images = to_float(setup.data.train)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), setup.config.run.batch_size, shuffle=True, drop_last=True)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100000)
    model, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)
    source = iter(loader)

    def run(steps: int) -> None:
        nonlocal source
        for _ in range(steps):
            try:
                (clean,) = next(source)
            except StopIteration:
                source = iter(loader)
                (clean,) = next(source)
            noise = torch.randn(clean.shape)
            timesteps = torch.randint(0, 1000, (len(clean),)).long()
            with accelerator.accumulate(model):
                predicted = model(schedule.add_noise(clean, noise, timesteps), timesteps).sample
                loss = functional.mse_loss(predicted.float(), noise.float())
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            average.step(model.parameters())
            loss.detach().item()

    return run


class _Wrapped(nn.Module):
    """Our network with the attributes and the signature that denoising-diffusion-pytorch asks for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.channels = self.out_dim = 1
        self.self_condition = self.random_or_learned_sinusoidal_cond = False

    def forward(self, images: Tensor, times: Tensor, condition: Tensor | None = None) -> Tensor:
        found: Tensor = self.network(images, times).sample
        return found


def peer_loads() -> None:
    """Let a torchvision load whose compiled part does not fit this build of torch; the peer needs its transforms only."""
    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[torch.library.Library] = []  # an operator lives as long as its library


def denoising_diffusion(setup: Setup, folder: Path) -> Run:
    """denoising-diffusion-pytorch: its GaussianDiffusion, and the steps of its Trainer with its own objects."""
    peer_loads()
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer
    from PIL import Image

    place = folder / "images"
    place.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(setup.data.train[:500]):
        Image.fromarray(image[0].numpy()).save(place / f"{index}.png")
    size = setup.config.run.batch_size
    wrapped = _Wrapped(setup.base_model())
    diffusion = GaussianDiffusion(wrapped, image_size=setup.data.shape[-1], timesteps=1000, objective="pred_noise", auto_normalize=True)
    trainer = Trainer(
        diffusion,
        str(place),
        train_batch_size=size,
        train_num_steps=0,
        save_and_sample_every=10**9,
        results_folder=str(folder / "results"),
        calculate_fid=False,
        convert_image_to="L",
        amp=False,
    )

    def run(steps: int) -> None:
        trainer.train_num_steps = trainer.step + steps
        trainer.train()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fashion16")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="steps of each turn; each turn of ours ends with a checkpoint, as a run does")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer", type=Path, help="folder with denoising-diffusion-pytorch, from pip install --target")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = {"run.batch_size": arguments.batch_size, "run.cpu": True, "run.checkpoint_every": 10**6, "run.log_every": 1}
    config = StepAdaptiveConfig.preset(arguments.preset).with_values(values)
    makers: dict[str, Callable[[Setup, Path], Run]] = {"proxyprune": ours, "bare PyTorch": bare, "diffusers example": diffusers_example}
    makers["denoising-diffusion-pytorch"] = denoising_diffusion
    left_out = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        setup = Setup.of(config, make_accelerator(config, RunFolder(folder)))
        runs: dict[str, Run] = {}
        for name, make in makers.items():
            if make is denoising_diffusion and arguments.peer is not None:
                sys.path.append(str(arguments.peer))  # last of all: its torchvision must not reach the other libraries
            try:
                runs[name] = make(setup, folder / name.replace(" ", "-"))
                runs[name](2)
            except (ImportError, RuntimeError) as error:  # a torchvision that does not fit fails in either way
                left_out[name] = str(error)
                runs.pop(name, None)
        times: dict[str, list[float]] = {name: [] for name in runs}
        walls: dict[str, list[float]] = {name: [] for name in runs}
        order = list(runs)
        for turn in range(arguments.rounds):
            for name in copy.copy(order[turn % len(order) :] + order[: turn % len(order)]):
                started, wall = time.process_time(), time.perf_counter()
                runs[name](arguments.steps)
                times[name].append((time.process_time() - started) / arguments.steps)
                walls[name].append((time.perf_counter() - wall) / arguments.steps)
    rows: list[dict[str, Any]] = []
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["bare PyTorch"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        best = min(own) / min(times["bare PyTorch"])
        images = arguments.batch_size / statistics.median(own)
        row = {
            "loop": name,
            "images/s": images,
            "time against bare": statistics.median(ratios),
            "low": low,
            "high": high,
            "fastest against bare": best,
        }
        rows.append(row)
    print_table(f"{arguments.preset}, batch {arguments.batch_size}, one thread, {arguments.rounds} turns", list(rows[0]), rows)
    for name, why in left_out.items():
        print(f"left out: {name} ({why})")
    content = {
        "preset": arguments.preset,
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "seed": 0,
    }
    save(
        "train_speed",
        {
            "environment": environment(),
            **content,
            "rows": rows,
            "processor_seconds_per_step": times,
            "wall_seconds_per_step": walls,
            "left_out": left_out,
        },
    )


if __name__ == "__main__":
    main()
