"""Random numbers of torch, as before after a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put the state of torch's random number generators, on every device, back afterwards."""
    with torch.random.fork_rng():
        yield
