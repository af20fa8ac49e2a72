"""How long does pruning take? proxyprune's whole flow beside torch-pruning's, on the 35.7 M parameter DDPM CIFAR-10 U-Net.

Ours is all of `pp.prune`: trace, couple, score, plan, cut, verify, run. Theirs is building the dependency graph, one pruning step and one
count of MACs, after which the network does not run (the error is in the result). Both take turns in one process, so that a busy machine
slows both; the first round warms up and is left out.

    python benchmarks/prune_speed.py
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_pruning
from common import environment, print_table, save
from diffusers import UNet2DModel

import proxyprune as pp

ROUNDS = 5
PLANS = 20_000


def ddpm_cifar10() -> UNet2DModel:
    """Return the U-Net of Ho et al. 2020 (arXiv:2006.11239) for CIFAR-10, as diffusers configures it."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    ).eval()


def theirs(model: UNet2DModel, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, str]:
    """Dependency graph, one step, one count; seconds, and what happens when the result is run."""
    pruned = copy.deepcopy(model)
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned, inputs, importance=torch_pruning.importance.MagnitudeImportance(), pruning_ratio=0.25, ignored_layers=[pruned.conv_out]
    )
    pruner.step()
    torch_pruning.utils.count_ops_and_params(model, inputs)
    return time.perf_counter() - start, outcome_of(pruned, inputs)


def outcome_of(model: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> str:
    """Whether it "runs", or what the model raises."""
    try:
        model(*inputs)
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        return f"{type(error).__name__}: {error}".strip()
    return "runs"


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    """Take turns, then price many plans."""
    model = ddpm_cifar10()
    inputs = (torch.randn(1, 3, 32, 32), torch.tensor([10]))
    ours: list[float] = []
    peer: list[float] = []
    outcome = ""
    for _ in range(ROUNDS + 1):
        seconds, result = timed(lambda: pp.prune(model, inputs, target=0.6))
        ours.append(seconds)
        seconds, outcome = theirs(model, inputs)
        peer.append(seconds)
    ours, peer = ours[1:], peer[1:]
    graph = result.graph
    generator = np.random.default_rng(0)
    plans = generator.integers([group.floor for group in graph.prunable], graph.cost.full + 1, size=(PLANS, len(graph.prunable)))
    pricing, _ = timed(lambda: graph.cost.macs_batch(plans))
    one_by_one, _ = timed(lambda: [graph.cost.macs(plan) for plan in plans[:2000]])
    row = {
        "proxyprune_seconds": statistics.median(ours),
        "torch_pruning_seconds": statistics.median(peer),
        "ratio": statistics.median(a / b for a, b in zip(ours, peer, strict=True)),
        "plans_per_second": round(PLANS / pricing),
        "plans_per_second_singly": round(2000 / one_by_one),
    }
    print_table("Pruning the DDPM CIFAR-10 U-Net (35.7 M parameters)", tuple(row), [row])
    details = {
        "ours_runs": outcome_of(result.model, inputs),
        "theirs_runs": outcome,
        "proxyprune_all_seconds": ours,
        "torch_pruning_all_seconds": peer,
        "planned_macs": result.plan.macs,
        "base_macs": result.plan.base_macs,
    }
    save("prune_speed", row | details | environment())


if __name__ == "__main__":
    main()
