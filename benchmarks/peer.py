"""torch-pruning's own pruner, global, cut to the same budget by bisecting its ratio, and counted with our exact counter."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from fashion import Subject
from torch import nn

import proxyprune as pp
from proxyprune import Recovery
from proxyprune.comparing import Cell
from proxyprune.measuring.held_out import Data, held_out_loss, recovered

ARMS: dict[str, Callable[[], Any]] = {
    "torch-pruning magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "torch-pruning taylor": lambda: tp.importance.GroupTaylorImportance(),
}
_BISECTIONS = 7
_NEAR = 0.01  # of the base MACs; closer than this is close enough


def peer_cell(
    arm: str, subject: Subject, model: nn.Module, target: float, seed: int, data: Data, scored: tuple[Any, ...], recovery: Recovery
) -> Cell:
    """Cut, count, run, recover, measure; whatever torch-pruning or the pruned model raises becomes the cell's error."""
    started = time.perf_counter()
    cell = {"scorer": arm, "mode": "width", "target": target, "seed": seed}
    base = pp.trace(model, subject.example_inputs, probe=False).macs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small, macs = _to_budget(arm, subject, model, target * base, base, data, scored)
        loss = held_out_loss(small, data, seed=0)
        after = recovered(small, data, recovery, seed)
        quality = subject.quality[1](after, data.held_out) if subject.quality else None
        return Cell(
            **cell,
            macs=macs,
            params=sum(p.numel() for p in small.parameters()),
            loss=loss,
            recovered_loss=held_out_loss(after, data, seed=0),
            quality=quality,
            seconds=time.perf_counter() - started,
        )
    except Exception as error:  # noqa: BLE001  another library's failure is a result here
        text = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else 'no message'}"
        return Cell(**cell, seconds=time.perf_counter() - started, error=text)


def _to_budget(
    arm: str, subject: Subject, model: nn.Module, limit: float, base: int, data: Data, scored: tuple[Any, ...]
) -> tuple[nn.Module, int]:
    """Return the largest pruned network found within the budget.

    Raises:
        RuntimeError: If no ratio that was tried gives a network within the budget.
    """
    low, high = 0.0, 0.95
    best: tuple[nn.Module, int] | None = None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        small = _pruned(arm, subject, model, ratio, data, scored)
        with torch.no_grad():
            small(*subject.example_inputs)  # it has to run before it can be counted
        macs = pp.trace(small, subject.example_inputs, probe=False).macs
        if macs <= limit:
            best, high = ((small, macs) if best is None or macs > best[1] else best), ratio
        else:
            low = ratio
        if best is not None and limit - best[1] <= _NEAR * base:
            break
    if best is None:
        raise RuntimeError(f"no ratio up to {high:.2f} meets the budget of {limit:.0f} MACs")
    return best


def _pruned(arm: str, subject: Subject, model: nn.Module, ratio: float, data: Data, scored: tuple[Any, ...]) -> nn.Module:
    small = copy.deepcopy(model).eval()
    if arm.endswith("taylor"):
        for batch in scored:
            (data.loss_fn(small, batch) / len(scored)).backward()
    layers = [module for module in small.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    heads = {
        projection: module.heads
        for module in small.modules()
        if hasattr(module, "to_q") and hasattr(module, "heads")
        for projection in (module.to_q, module.to_k, module.to_v)
    }
    pruner = tp.pruner.BasePruner(
        small,
        subject.example_inputs,
        importance=ARMS[arm](),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        ignored_layers=[layers[-1]],
        num_heads=heads,
    )
    pruner.step()
    small.zero_grad(set_to_none=True)
    return small
