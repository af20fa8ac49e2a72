"""torch-pruning's MagnitudePruner on the same network, as its documentation shows it: nothing in it is written for one network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from candidates import Candidate, Inputs
from torch import Tensor, nn
from verdicts import Verdict, call, first_line, outputs, quiet, tensors_of

RATIO = 0.25
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_head", "heads")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def judge_peer(candidate: Candidate, verdict: Verdict, report: Callable[[Verdict], None]) -> Verdict:
    """Prune a quarter of the channels everywhere but in the last layer, and run the result."""
    report(replace(verdict, peer=False, peer_error="did not end by itself"))
    started = time.perf_counter()
    try:
        model = candidate.build()
        inputs = candidate.inputs(model)
        before = _parameters(model)
        with quiet():
            _prune(model, inputs)
        outputs(model, inputs)
        problem = None if _parameters(model) < before else "runs, but no channel was removed"
    except Exception as error:  # noqa: BLE001  another library's failure is a result here
        problem = first_line(error)
    return replace(verdict, peer=problem is None, peer_error=problem, peer_seconds=round(time.perf_counter() - started, 2))


def _prune(model: nn.Module, inputs: Inputs) -> None:
    import torch_pruning

    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=_last_layers(model, inputs),
        num_heads=_head_counts(model),
        output_transform=tensors_of,  # caches among the outputs are not tensors
    )
    pruner.step()


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _last_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """Return the layer that runs last: its channels are the output's."""
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module)) for module in model.modules() if isinstance(module, _LAYERS)
    ]
    with torch.no_grad():
        call(model, inputs)
    for hook in hooks:
        hook.remove()
    return order[-1:]


def _head_counts(model: nn.Module) -> dict[nn.Module, int]:
    """Return the number of heads of each projection, found by the attribute names that libraries use for it."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        counts: list[Any] = [getattr(module, name, None) for name in _HEAD_COUNTS]
        count = next((value for value in counts if isinstance(value, int) and not isinstance(value, Tensor)), None)
        if count is None:
            continue
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and not name.startswith(("out", "o_", "proj", "to_out", "c_proj")):
                found[child] = count
    return found
