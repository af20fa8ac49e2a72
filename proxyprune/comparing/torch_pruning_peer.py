"""torch-pruning's own pruner as an arm of a comparison: the same budget, met by bisecting its ratio and counted by our counter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.api import trace
from proxyprune.errors import InputError
from proxyprune.support.nested import tensors_of
from proxyprune.tracing.model_call import ExampleInputs, call_arguments
from proxyprune.tracing.module_state import copied, unchanged

PEERS: Mapping[str, str] = {
    "torch-pruning-magnitude": "GroupMagnitudeImportance",
    "torch-pruning-taylor": "GroupTaylorImportance",
}
"""Name of an arm -> class in `torch_pruning.importance`."""

_BISECTIONS = 7
_NEAR = 0.01  # of the base; a network that is closer to the budget is close enough
_LARGEST_RATIO = 0.95
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_head", "heads")
_QUERIES_AND_KEYS = ("query", "key", "value", "to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj", "qkv", "c_attn")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class PeerTask:
    """The arguments of torch-pruning.

    Attributes:
        model: The trained network; it stays as it is.
        inputs: What it was traced on.
        metric: "macs" or "params".
        base: Cost of the unpruned network.
        limit: The most that the pruned one may cost.
        batches: Calibration batches, for criteria that need gradients.
        loss_fn: Loss of the model on one batch.
    """

    model: nn.Module
    inputs: ExampleInputs
    metric: str
    base: int
    limit: int
    batches: Sequence[Any]
    loss_fn: Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class PeerNetwork:
    """A network that torch-pruning has cut, with its cost by our counter."""

    model: nn.Module
    macs: int
    params: int


def peer_network(peer: str, task: PeerTask) -> PeerNetwork:
    """Return the largest network within the budget that bisecting torch-pruning's global ratio finds.

    The last layer that runs is ignored, as its documentation advises, and the number of attention heads is found from the names of
    attributes, since without it no network with attention runs.

    Args:
        peer: A key of `PEERS`.
        task: The network and the budget.

    Raises:
        Exception: Whatever torch-pruning or the network that it returns raises.
        RuntimeError: If no ratio that was tried meets the budget.
    """
    low, high = 0.0, _LARGEST_RATIO
    best: tuple[int, PeerNetwork] | None = None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        found = _counted(_pruned(peer, ratio, task), task)
        cost = found.macs if task.metric == "macs" else found.params
        if cost <= task.limit:
            best, high = ((cost, found) if best is None or cost > best[0] else best), ratio
        else:
            low = ratio
        if best is not None and task.limit - best[0] <= _NEAR * task.base:
            break
    if best is None:
        raise RuntimeError(f"no ratio up to {high:.2f} meets the budget of {task.limit:,}")
    return best[1]


def check_peers(peers: Sequence[str]) -> tuple[str, ...]:
    """Return the names of peers without repetitions.

    Raises:
        InputError: If a name is unknown.
    """
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown:
        raise InputError(f"Unknown peer {unknown[0]!r}; expected one of {', '.join(PEERS)}.")
    return tuple(dict.fromkeys(peers))


def _counted(model: nn.Module, task: PeerTask) -> PeerNetwork:
    """Count a network, after it has run: a network that does not run has no cost."""
    _run(model, task.inputs)
    graph = trace(model, task.inputs, probe=False)
    return PeerNetwork(model, graph.macs, graph.params)


def _pruned(peer: str, ratio: float, task: PeerTask) -> nn.Module:
    import torch_pruning

    small = copied(task.model, {}).eval()
    if peer == "torch-pruning-taylor":
        for batch in task.batches:
            torch.autograd.backward(task.loss_fn(small, batch) / len(task.batches))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            small,
            _example_inputs(task.inputs),
            importance=getattr(torch_pruning.importance, PEERS[peer])(),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=_LARGEST_RATIO,
            ignored_layers=_last_layers(small, task.inputs),
            num_heads=_head_counts(small),
            output_transform=lambda output: list(tensors_of(output)),
        )
        pruner.step()
    small.zero_grad(set_to_none=True)
    return small


def _example_inputs(inputs: ExampleInputs) -> Any:
    """Return inputs as torch-pruning takes them: a dict of named arguments, or a tuple."""
    args, kwargs = call_arguments(inputs)
    return dict(kwargs) if kwargs else tuple(args)


def _run(model: nn.Module, inputs: ExampleInputs) -> None:
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        model(*args, **kwargs)


def _last_layers(model: nn.Module, inputs: ExampleInputs) -> list[nn.Module]:
    """Return the layer that runs last: its channels are the output's."""
    order: list[nn.Module] = []
    with unchanged(model):
        for module in model.modules():
            if isinstance(module, _LAYERS):
                module.register_forward_hook(lambda layer, *_: order.append(layer))
        _run(model, inputs)
    return order[-1:]


def _head_counts(model: nn.Module) -> dict[nn.Module, int]:
    """Return the number of heads of each projection to queries, keys and values, by the names that libraries give them."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        counts = [getattr(module, name, None) for name in _HEAD_COUNTS]
        count = next((value for value in counts if isinstance(value, int) and not isinstance(value, bool)), None)
        if count is not None:
            found |= {child: count for name, child in module.named_children() if isinstance(child, nn.Linear) and name in _QUERIES_AND_KEYS}
    return found
