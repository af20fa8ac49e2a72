"""Images, timesteps and noise of a step: a function of the seed, the stage and the step's number, and of nothing else.

So the position in the data is the number of the step. A run that is resumed draws what it would have drawn, and with several processes
each takes its part of the batch that one process would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxyprune.diffusion.data.image_data import ImageData, to_float
from proxyprune.diffusion.process.objective import NoisyBatch, Process
from proxyprune.support.seeds import derived_seed


@dataclass
class Draws:
    """Batches of one stage.

    Attributes:
        data: The images.
        process: The noise.
        seed: The run's seed.
        stage: Name of the stage; other stages draw otherwise.
        first: First timestep.
        last: Last timestep.
        batch_size: Images of one step, over all processes.
        rank: This process.
        world: Number of processes.
    """

    data: ImageData
    process: Process
    seed: int
    stage: str
    first: int
    last: int
    batch_size: int
    rank: int = 0
    world: int = 1
    _order: tuple[int, Tensor] = field(default=(-1, torch.empty(0)), init=False, repr=False)
    _generator: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False)

    def batch(self, step: int, device: torch.device | str = "cpu") -> NoisyBatch:
        """Return this process's part of the batch of one step."""
        chosen = self._indices(step)
        self._generator.manual_seed(derived_seed(self.seed, self.stage, "noise", step))
        timesteps = torch.randint(self.first, self.last + 1, (self.batch_size,), generator=self._generator)
        noise = torch.randn((self.batch_size, *self.data.shape), generator=self._generator)
        part = slice(self.batch_size * self.rank // self.world, self.batch_size * (self.rank + 1) // self.world)
        mine = chosen[part]
        condition = None if self.data.labels is None else self.data.labels[mine].to(device)
        return self.process.batch(to_float(self.data.train[mine].to(device)), noise[part].to(device), timesteps[part].to(device), condition)

    def _indices(self, step: int) -> Tensor:
        """Every image once in each epoch, in an order of that epoch; a batch may span two."""
        total = len(self.data.train)
        start, parts = step * self.batch_size, []
        stop = start + self.batch_size
        while start < stop:
            epoch, offset = divmod(start, total)
            taken = min(total - offset, stop - start)
            parts.append(self._epoch(epoch)[offset : offset + taken])
            start += taken
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _epoch(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, self.stage, "order", epoch))
            self._order = (epoch, torch.randperm(len(self.data.train), generator=generator))
        return self._order[1]


def fixed_batches(
    data: ImageData,
    process: Process,
    first: int,
    last: int,
    *,
    images: int,
    batch_size: int,
    seed: int,
    held_out: bool,
    device: torch.device,
) -> Sequence[NoisyBatch]:
    """Batches with fixed images, timesteps (evenly spread over first ... last) and noise, for scoring and measuring."""
    pool, labels = (data.held_out, data.held_out_labels) if held_out else (data.train, data.labels)
    generator = torch.Generator().manual_seed(derived_seed(seed, "fixed", int(held_out), first, last))
    chosen = torch.randperm(len(pool), generator=generator).repeat(-(-images // len(pool)))[:images]
    spread = (torch.arange(images, dtype=torch.float64) + 0.5) / images * (last - first + 1)
    timesteps = (first + spread.long())[torch.randperm(images, generator=generator)]
    noise = torch.randn((images, *data.shape), generator=generator)
    return [
        process.batch(
            to_float(pool[picked].to(device)), eps.to(device), times.to(device), None if labels is None else labels[picked].to(device)
        )
        for picked, eps, times in zip(*(torch.split(part, batch_size) for part in (chosen, noise, timesteps)), strict=True)
    ]
