"""Norms that lose channels: what they yield if only the channels that stay enter.

A norm over channels divides by a statistic of all of them. After a cut the statistic is that of fewer channels, so the layers that read the
norm see other values than the kept part of what the norm of the unpruned network yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxyprune.compensation.readers import Networks, Reader
from proxyprune.scoring.tools.hooks import Hook
from proxyprune.support.nested import tensors_of

_REMEMBERED = 4
"""Outputs of norms that are kept until a layer reads them; layers read a norm before the next few norms are called."""


@dataclass(frozen=True)
class CutNorm:
    """A norm over channels, in both networks.

    Attributes:
        dense: The norm in the unpruned network.
        pruned: The norm in the pruned network.
        kept: Channels that stay.
        dim: Dimension of its input that runs along channels.
    """

    dense: nn.Module = field(repr=False)
    pruned: nn.Module = field(repr=False)
    kept: tuple[int, ...] = field(repr=False)
    dim: int


def cut_norms(networks: Networks) -> tuple[CutNorm, ...]:
    """Find the norms over channels whose weight was cut; the statistics of a batch norm are those of one channel."""
    kept = {cut.parameter: cut.kept for cut in networks.surgery.cuts if cut.dim == 0}
    modules = dict(networks.dense.named_modules())
    found = []
    for name, module in networks.pruned.named_modules():
        weight = networks.program.aliases.get(f"{name}.weight", f"{name}.weight")
        own = module._parameters.get("weight")
        named = "norm" in type(module).__name__.lower() and not isinstance(module, _BatchNorm)
        if weight in kept and named and own is not None and own.ndim == 1 and name in modules:
            found.append(CutNorm(modules[name], module, kept[weight], 1 if isinstance(module, nn.GroupNorm) else -1))
    return tuple(found)


@dataclass(frozen=True)
class _Yielded:
    """One call of a norm: its output, with the state in which it was, and what the norm of the pruned network yields."""

    norm: CutNorm
    output: Tensor
    version: int
    narrow: Tensor


class NormOutputs:
    """Outputs of the norms of the unpruned network, with what the norms of the pruned network make of the channels that stay.

    Args:
        norms: From `cut_norms`.
    """

    def __init__(self, norms: Sequence[CutNorm]) -> None:
        self._norms = norms
        self._last: deque[_Yielded] = deque(maxlen=_REMEMBERED)

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        """Yield a hook for each norm of the unpruned network."""
        return ((norm.dense, self._hook(norm)) for norm in self._norms)

    def clear(self) -> None:
        """Forget the calls of one batch."""
        self._last.clear()

    def features(self, reader: Reader, value: Tensor) -> Tensor | None:
        """Return the features of a layer that reads the output of a norm, [groups, positions, features]; None if no norm yielded its input.

        Args:
            reader: The layer.
            value: What the dense layer was called with.
        """
        for call in self._last:
            same = call.output.data_ptr() == value.data_ptr() and call.output.shape == value.shape
            axes = call.norm.dim % value.ndim == reader.view.channel_dim(reader.dense) % value.ndim
            if same and axes and call.norm.kept == reader.kept_inputs and _version(value) == call.version:
                return reader.view.inputs(reader.pruned, call.narrow)
        return None

    def _hook(self, norm: CutNorm) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = list(tensors_of((args, tuple(kwargs.values()))))
            if len(given) != 1 or not isinstance(output, Tensor) or output.shape != given[0].shape:
                return
            kept = torch.tensor(norm.kept, device=output.device)
            with torch.no_grad():
                narrow = norm.pruned.forward(given[0].index_select(norm.dim, kept))
            if isinstance(narrow, Tensor):
                self._last.appendleft(_Yielded(norm, output, _version(output), narrow))

        return hook


def _version(tensor: Tensor) -> int:
    """Return a number that changes if the tensor is written to; tensors of inference mode have none."""
    return 0 if tensor.is_inference() else int(tensor._version)
