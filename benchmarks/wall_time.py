"""Are pruned networks really faster? Wall time against MACs, for a U-Net, a DiT and a ResNet, with widths as they come and rounded to 8.

Every pruned network takes turns with the unpruned one in one process; the figure is the median of the ratios, with quartiles.

    python benchmarks/wall_time.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, environment, print_table, save
from matplotlib.figure import Figure
from torch import nn

import proxyprune as pp

TARGETS = (0.8, 0.6, 0.4)
ROUNDING = (1, 8)
BATCH = 16
ROUNDS = 15


def unet() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a DDPM U-Net on 32 x 32 images: 64 to 128 channels, attention at 16 x 16."""
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )
    return model, (torch.randn(1, 3, 32, 32), torch.tensor([10]))


def dit() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a DiT on 32 x 32 latents, patches of 2: 256 tokens of 192 channels, 6 layers."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=32, in_channels=4, num_layers=6, sample_size=32, patch_size=2)
    return model, (torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.tensor([1]))


def resnet() -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a ResNet with basic blocks on 64 x 64 images."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10)
    return ResNetForImageClassification(config), (torch.randn(1, 3, 64, 64),)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {"unet": unet, "dit": dit, "resnet": resnet}
TITLES = {"unet": "U-Net", "dit": "DiT", "resnet": "ResNet"}
"""Names of the networks in the plot."""


def seconds(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Wall time of one forward pass."""
    start = time.perf_counter()
    model(*inputs)
    return time.perf_counter() - start


def measure(name: str) -> list[dict[str, Any]]:
    """Prune to every target and rounding, then take turns with the unpruned network."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    model.eval()
    batch = tuple(value.repeat(BATCH, *[1] * (value.dim() - 1)) for value in inputs)
    rows = []
    for target in TARGETS:
        for round_to in ROUNDING:
            result = pp.prune(model, inputs, target=target, round_to=round_to)
            with torch.no_grad():
                for warm in (model, result.model):
                    warm(*batch)
                ratios = [seconds(result.model, batch) / seconds(model, batch) for _ in range(ROUNDS)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows.append(
                {
                    "network": name,
                    "target": target,
                    "round_to": round_to,
                    "macs_ratio": result.plan.macs / result.plan.base_macs,
                    "time_ratio": middle,
                    "time_ratio_low": low,
                    "time_ratio_high": high,
                }
            )
    return rows


def plot(rows: list[dict[str, Any]]) -> None:
    """Time ratio against MACs ratio, one panel a network."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(NETWORKS), sharey=True)
    for panel, name in zip(panels, NETWORKS, strict=True):
        for round_to, marker in zip(ROUNDING, ("o", "s"), strict=True):
            own = [row for row in rows if row["network"] == name and row["round_to"] == round_to]
            middle = [row["time_ratio"] for row in own]
            spread = [[m - row["time_ratio_low"] for m, row in zip(middle, own, strict=True)]]
            spread.append([row["time_ratio_high"] - m for m, row in zip(middle, own, strict=True)])
            label = f"round_to={round_to}"
            panel.errorbar([row["macs_ratio"] for row in own], middle, yerr=spread, marker=marker, capsize=3, label=label)
        panel.plot([0.35, 1], [0.35, 1], color="0.6", linestyle="--", label="time = MACs")
        panel.set(title=TITLES[name], xlabel="MACs, pruned / base")
    panels[0].set_ylabel("wall time, pruned / base")
    panels[0].legend()
    figure.savefig(RESULTS / "wall_time.png", dpi=130)


def main() -> None:
    """All networks."""
    rows = [row for name in NETWORKS for row in measure(name)]
    print_table(f"Wall time of a forward pass, batch {BATCH}, {torch.get_num_threads()} threads, CPU", tuple(rows[0]), rows)
    save("wall_time", {"batch": BATCH, "rounds": ROUNDS, "threads": torch.get_num_threads(), "device": "cpu", "rows": rows} | environment())
    plot(rows)


if __name__ == "__main__":
    main()
