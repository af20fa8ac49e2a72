"""What should happen to GroupNorm when channels leave? The three options of `norm_groups`, measured.

A small diffusion U-Net (8 norm groups) is trained on scikit-learn's digits and pruned to the same budgets with each option, by Taylor
scores. Compared are the denoising loss on held-out images right after pruning and after a short recovery, over several seeds.

    python benchmarks/norm_groups.py
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from common import environment, print_table, save
from diffusers import UNet2DModel
from torch import nn

import proxyprune as pp

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import unet

OPTIONS = ("balanced", "whole", "reduced")
TARGETS = (0.8, 0.6, 0.4)
SEEDS = (0, 1, 2)
TRAINING_STEPS, RECOVERY_STEPS, BATCH = 500, 60, 64


def build(seed: int) -> UNet2DModel:
    """Return the U-Net of the example with 8 norm groups instead of 4, so that steps are coarse enough to matter."""
    torch.manual_seed(seed)
    return UNet2DModel.from_config({**unet.build_model().config, "norm_num_groups": 8})


def train(model: nn.Module, steps: int, seed: int) -> None:
    """Adam on noisy digits."""
    images, _ = unet.digits()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        chosen = images[torch.randint(len(images), (BATCH,), generator=generator)]
        (batch,) = unet.noisy_batches(chosen, batch_size=BATCH, generator=generator)
        optimizer.zero_grad()
        unet.loss(model, batch).backward()
        optimizer.step()
    model.eval()


def held_out_loss(model: nn.Module) -> float:
    """Mean denoising loss on held-out digits, each at four noise levels."""
    _, images = unet.digits()
    batches = unet.noisy_batches(images.repeat(4, 1, 1, 1), batch_size=256, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return statistics.fmean(float(unet.loss(model, batch)) for batch in batches)


def main() -> None:
    """All options, targets and seeds."""
    torch.set_num_threads(1)  # the network is small; two threads on a busy machine are slower than one
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        model = build(seed)
        train(model, TRAINING_STEPS, seed)
        base = held_out_loss(model)
        for target in TARGETS:
            for option in OPTIONS:
                result = pp.prune(
                    model,
                    unet.example_inputs(),
                    target,
                    "taylor",
                    norm_groups=option,
                    batches=unet.calibration_batches(),
                    loss_fn=unet.loss,
                )
                right_after = held_out_loss(result.model)
                train(result.model, RECOVERY_STEPS, seed + 100)
                recovered = held_out_loss(result.model)
                share = result.plan.macs / result.plan.base_macs
                runs.append(
                    {"seed": seed, "target": target, "norm_groups": option, "macs_share": share, "base_loss": base}
                    | {"right_after": right_after, "recovered": recovered}
                )
    rows = []
    for target in TARGETS:
        for option in OPTIONS:
            own = [run for run in runs if run["target"] == target and run["norm_groups"] == option]
            row: dict[str, Any] = {"target": target, "norm_groups": option}
            for key in ("macs_share", "right_after", "recovered"):
                values = [run[key] for run in own]
                row |= {key: statistics.fmean(values), f"{key}_sd": statistics.stdev(values)}
            rows.append(row)
    base = statistics.fmean(run["base_loss"] for run in runs)
    print_table(f"Denoising loss, mean of {len(SEEDS)} seeds (base {base:.3f})", tuple(rows[0]), rows)
    settings = {"training_steps": TRAINING_STEPS, "recovery_steps": RECOVERY_STEPS, "batch": BATCH, "seeds": SEEDS}
    save("norm_groups", {"settings": settings, "rows": rows, "runs": runs} | environment())


if __name__ == "__main__":
    main()
