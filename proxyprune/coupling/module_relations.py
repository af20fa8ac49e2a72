"""The few modules whose forward hides a relation that no op shows.

nn.MultiheadAttention computes the head dimension as embedding width / heads, so when heads leave, the embedding must shrink by
the same whole heads. Everything else is found from the ops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from proxyprune.coupling.axes import Axis, AxisLabels
from proxyprune.tracing.program import Program

Leaves = Mapping[str, tuple[Axis, ...]]


def relate(model: nn.Module, program: Program, leaves: Leaves, labels: AxisLabels) -> None:
    """Record what the adapters know about the modules of a model."""
    for name, module in model.named_modules():
        for kind, adapter in ADAPTERS.items():
            if isinstance(module, kind):
                adapter(module, name, program, leaves, labels)


def _multihead_attention(module: nn.Module, name: str, program: Program, leaves: Leaves, labels: AxisLabels) -> None:
    """Channel i of the embedding stands for channel i of the heads' concatenation."""

    def axis(parameter: str, dim: int) -> Axis:
        full = f"{name}.{parameter}" if name else parameter
        full = program.aliases.get(full, full)
        return leaves[full][dim] if full in leaves else None

    embedding = axis("out_proj.weight", 0)
    where = f"multi-head attention {name}"
    if embedding is None:
        return
    size = len(embedding)
    labels.equate(embedding, axis("out_proj.weight", 1), where)
    packed = axis("in_proj_weight", 0)
    runs = [packed[k * size : (k + 1) * size] for k in range(3)] if packed is not None else []
    runs += [own for own in (axis(f"{letter}_proj_weight", 0) for letter in "qkv") if own is not None]
    for run in runs:
        labels.equate(embedding, run, where)
    heads = int(module.num_heads)  # type: ignore[arg-type]  # modules return Tensor | Module for any name
    if size % heads == 0 and size > heads:
        labels.tie_within_runs(np.asarray(embedding), heads, where)


ADAPTERS: dict[type[nn.Module], Callable[[nn.Module, str, Program, Leaves, AxisLabels], None]] = {
    nn.MultiheadAttention: _multihead_attention
}
