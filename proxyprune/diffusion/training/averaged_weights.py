"""Averaged weights: what samples are drawn with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of a network's state; nothing is averaged when the decay is 0.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that random weights are forgotten. Whole numbers and buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()} if decay else {}
        self._averaged = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._live: tuple[list[Tensor], list[Tensor]] | None = None

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from saved values."""
        places = {name: value.device for name, value in self.state.items()}  # a checkpoint is read into the memory of the CPU
        self.state = {name: value.detach().to(places.get(name, value.device)).clone() for name, value in state.items()}
        self.updates = updates
        self._live = None

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the network's weights."""
        if not self.decay:
            return
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._live is None:
            found = model.state_dict(keep_vars=True)
            names = [name for name in self.state if name in self._averaged and self.state[name].is_floating_point()]
            self._live = ([self.state[name] for name in names], [found[name] for name in names])
            self._rest = [(self.state[name], found[name]) for name in self.state if name not in set(names)]
        torch._foreach_lerp_(self._live[0], [value.detach() for value in self._live[1]], weight)
        for kept, value in self._rest:
            kept.copy_(value)

    def best(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the averaged state, or the network's own without averaging."""
        return self.state if self.decay else {name: value.detach() for name, value in model.state_dict().items()}

    @contextlib.contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Run the network with averaged weights inside."""
        if not self.decay:
            yield
            return
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
