"""Does the time of pruning grow linearly with the depth of a network? Tiny transformers of 4 to 32 layers.

CPU seconds of `pp.trace` and of `pp.prune`, the smaller of two rounds, on one core. The exponent is the slope of the logarithm of seconds
over the logarithm of layers: 1 is linear, 2 is quadratic. What does not depend on the depth makes it smaller than 1.

    OMP_NUM_THREADS=1 python benchmarks/depth_time.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import environment, print_table, save
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, SwinConfig, SwinModel, ViTConfig, ViTModel

import proxyprune as pp

LAYERS = (4, 8, 16, 32)
ROUNDS = 2
TARGET = 0.6


class FixedHeads(nn.Module):
    """An attention layer whose number of heads is a constant in the code, so that a pin is needed in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(1, -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, 32))
        return x + self.mlp(x)


def llama(layers: int) -> tuple[nn.Module, Any]:
    """Build a Llama and tokens for it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    return LlamaModel(LlamaConfig(num_hidden_layers=layers, **sizes)), {"input_ids": torch.ones(1, 8, dtype=torch.long), "use_cache": False}


def vit(layers: int) -> tuple[nn.Module, Any]:
    """Build a vision transformer and an image for it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    return ViTModel(ViTConfig(num_hidden_layers=layers, **sizes)), torch.zeros(1, 3, 32, 32)


def swin(layers: int) -> tuple[nn.Module, Any]:
    """Build a Swin transformer of two stages and an image for it."""
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, layers - 2], num_heads=[2, 4], window_size=4)
    return SwinModel(config), torch.zeros(1, 3, 32, 32)


def fixed_heads(layers: int) -> tuple[nn.Module, Any]:
    """Build a stack in which every layer needs a pin, and a sequence for it."""
    stack = [FixedHeads() for _ in range(layers)]
    return nn.Sequential(nn.Linear(8, 32), *stack, nn.Linear(32, 4)), torch.zeros(1, 6, 8)


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, Any]]] = {"Llama": llama, "ViT": vit, "Swin": swin, "fixed heads": fixed_heads}


def seconds(run: Callable[[], Any]) -> float:
    """Return CPU seconds."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(name: str, layers: int) -> dict[str, Any]:
    """Time one network of one depth."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name](layers)
    model.eval()
    traced = min(seconds(lambda: pp.trace(model, inputs)) for _ in range(ROUNDS))
    pruned = min(seconds(lambda: pp.prune(model, inputs, target=TARGET)) for _ in range(ROUNDS))
    return {"network": name, "layers": layers, "trace_s": round(traced, 3), "prune_s": round(pruned, 3)}


def exponent(rows: list[dict[str, Any]]) -> float:
    """Fit seconds of trace and prune together to layers ** exponent."""
    layers = [np.log(row["layers"]) for row in rows]
    total = [np.log(row["trace_s"] + row["prune_s"]) for row in rows]
    return round(float(np.polyfit(layers, total, 1)[0]), 2)


def main() -> None:
    torch.set_num_threads(1)
    measure("ViT", LAYERS[0])  # warms up
    rows = [measure(name, layers) for name in NETWORKS for layers in LAYERS]
    exponents = {name: exponent([row for row in rows if row["network"] == name]) for name in NETWORKS}
    print_table("CPU seconds by depth", ("network", "layers", "trace_s", "prune_s"), rows)
    print_table("seconds ~ layers ** exponent", ("network", "exponent"), [{"network": n, "exponent": e} for n, e in exponents.items()])
    save("depth_time", {"target": TARGET, "rounds": ROUNDS, "rows": rows, "exponents": exponents} | environment())


if __name__ == "__main__":
    main()
