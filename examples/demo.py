"""The whole job on a network trained here: a diffusion U-Net on scikit-learn's digits, described, scored, pruned and compared.

    python examples/demo.py --out demo-output

Trains for about a minute on two cores, then runs the command line as a user would, then cuts the same network to the same budget with three
scorers and puts the denoising losses side by side. It ends with a step-adaptive run.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import step_adaptive
import torch
import unet
from diffusers import UNet2DModel
from safetensors.torch import save_model
from unet import NoisyBatch

import proxyprune as pp

SEED = 0
TARGET = 0.6
TRAINING_STEPS = 500
RECOVERY_STEPS = 60
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
HELD_OUT_ROUNDS = 4  # every held-out image is judged at this many noise levels
SCORERS = ("magnitude", "taylor", "random")
MODEL_FILE = Path(unet.__file__)


@dataclass(frozen=True)
class Outcome:
    """Denoising loss (mean squared error on held-out images) of one network."""

    scorer: str
    macs: int
    params: int
    loss: float
    loss_recovered: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("demo-output"))
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the network is small, and the figures are then the same on any number of cores
    started = time.perf_counter()

    train_images, held_out_images = unet.digits()
    held_out = unet.noisy_batches(held_out_images.repeat(HELD_OUT_ROUNDS, 1, 1, 1), batch_size=128, generator=generator(SEED + 1))

    heading(f"1. Train a U-Net on {len(train_images)} digits, {TRAINING_STEPS} steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = unet.build_model()
    print(f"held-out loss before training {evaluate(model, held_out):.4f}")
    train(model, train_images, steps=TRAINING_STEPS, learning_rate=LEARNING_RATE, report=held_out)
    weights = out / "unet.safetensors"
    save_model(model, str(weights))

    source = ["--model", shown(MODEL_FILE), "--weights", str(weights)]
    heading("2. Read its structure")
    command_line("describe", *source)
    heading("3. Ask a scorer which blocks matter")
    command_line("score", *source, "--scorer", "taylor", "--plot", str(out / "ranking.png"))
    heading(f"4. Prune to {TARGET:.0%} of the multiply-accumulates")
    pruned = out / "pruned"
    command_line("prune", *source, "--scorer", "taylor", "--target", str(TARGET), "--out", str(pruned), "--plot", str(out / "widths.png"))

    heading(f"5. Three scorers, the same budget; loss right after the cut, and after {RECOVERY_STEPS} steps of recovery")
    outcomes = [Outcome("(unpruned)", *size(model), evaluate(model, held_out), further_training(model, train_images, held_out))]
    batches = unet.calibration_batches()
    for scorer in SCORERS:
        result = pp.prune(model, unet.example_inputs(), target=TARGET, scorer=scorer, batches=batches, loss_fn=unet.loss, seed=SEED)
        recovered = further_training(result.model, train_images, held_out)
        outcomes.append(Outcome(scorer, result.plan.macs, result.plan.params, evaluate(result.model, held_out), recovered))
    print_outcomes(outcomes)
    (out / "losses.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n", encoding="utf-8")

    loaded = pp.load(pruned, unet.build_model)
    print(f"\nLoaded again from {pruned}: held-out loss {evaluate(loaded, held_out):.4f}")
    heading("6. Step-adaptive diffusion: a pruned expert for each interval of noise levels")
    step_adaptive.run(out / "step-adaptive")
    print(
        f"\nEverything is in {out}/: plots, losses.json, the weights and the pruned network. {time.perf_counter() - started:.0f} s in all."
    )


def train(model: UNet2DModel, images: torch.Tensor, *, steps: int, learning_rate: float, report: list[NoisyBatch] | None = None) -> None:
    """AdamW with one cosine cycle; noise and order follow from the seed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for step, batch in enumerate(endless_batches(images, steps), start=1):
        optimizer.zero_grad()
        unet.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if report is not None and step % 125 == 0:
            print(f"step {step:4d}  held-out loss {evaluate(model, report):.4f}", flush=True)
            model.train()
    model.eval()


def further_training(model: UNet2DModel, images: torch.Tensor, held_out: list[NoisyBatch]) -> float:
    """Held-out loss of a copy that was trained a little longer; the unpruned network gets the same, to be fair."""
    model = copy.deepcopy(model)
    train(model, images, steps=RECOVERY_STEPS, learning_rate=LEARNING_RATE / 8)
    return evaluate(model, held_out)


def endless_batches(images: torch.Tensor, steps: int) -> Iterator[NoisyBatch]:
    source = generator(SEED + 2)
    done = 0
    while done < steps:
        shuffled = images[torch.randperm(len(images), generator=source)]
        for batch in unet.noisy_batches(shuffled, batch_size=BATCH_SIZE, generator=source)[: steps - done]:
            yield batch
            done += 1


@torch.no_grad()
def evaluate(model: UNet2DModel, batches: list[NoisyBatch]) -> float:
    model.eval()
    total = sum(unet.loss(model, batch).item() * len(batch.noise) for batch in batches)
    return total / sum(len(batch.noise) for batch in batches)


def size(model: UNet2DModel) -> tuple[int, int]:
    graph = pp.trace(model, unet.example_inputs())
    return graph.macs, graph.params


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def command_line(*arguments: str) -> None:
    """Run proxyprune in a process of its own, as a user would, and show the command."""
    print(f"$ proxyprune {' '.join(arguments)}\n", flush=True)
    subprocess.run([sys.executable, "-m", "proxyprune", *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def shown(path: Path) -> str:
    """Return a path as short as it can be written from here."""
    here = Path.cwd()
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else str(path)


def heading(text: str) -> None:
    print(f"\n=== {text}\n", flush=True)


def print_outcomes(outcomes: list[Outcome]) -> None:
    print(f"{'scorer':<12}{'MACs':>12}{'parameters':>12}{'loss':>10}{'recovered':>12}")
    for outcome in outcomes:
        print(f"{outcome.scorer:<12}{outcome.macs:>12,}{outcome.params:>12,}{outcome.loss:>10.4f}{outcome.loss_recovered:>12.4f}")


if __name__ == "__main__":
    main()
