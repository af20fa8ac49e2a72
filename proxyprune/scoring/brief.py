"""Further information for a scorer, besides the structure: the goal, the part of a diffusion process, and what was tried before.

Scorers that compute from weights need none of it. A language model, or anything else that reasons, does better when it knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyprune.errors import InputError


@dataclass(frozen=True)
class NoiseInterval:
    """The part of a diffusion process that a denoiser works in.

    Attributes:
        low_snr_db: Signal-to-noise ratio at the noisy end, in dB; SNR(t) = 10 log10(abar_t / (1 - abar_t)).
        high_snr_db: At the clean end, in dB.
        index: Place among the intervals; 0 is the cleanest.
        count: Number of intervals.
    """

    low_snr_db: float
    high_snr_db: float
    index: int
    count: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low_snr_db) and math.isfinite(self.high_snr_db) and self.low_snr_db < self.high_snr_db):
            raise InputError(f"Expected finite low_snr_db < high_snr_db, found {self.low_snr_db!r} and {self.high_snr_db!r}.")
        if not 0 <= self.index < self.count:
            raise InputError(f"Expected 0 <= index < count, found index {self.index!r} of {self.count!r}.")


@dataclass(frozen=True)
class Attempt:
    """One measured round: a ranking that was planned, applied and measured.

    Attributes:
        scores: The ranking's block importances.
        kept: Share of its MACs that each block kept, in [0, 1].
        macs: MACs of the pruned network.
        loss: Held-out loss after pruning (and after recovery, when there was one); smaller is better.
        accepted: Whether it was the best so far.
    """

    scores: Mapping[str, float] = field(repr=False)
    kept: Mapping[str, float] = field(repr=False)
    macs: int
    loss: float
    accepted: bool


@dataclass(frozen=True)
class Brief:
    """The purpose of a ranking.

    Attributes:
        target: Budget as it was asked for (a fraction of the base, or an amount), or None.
        metric: "macs" or "params": what the target budgets.
        mode: "width", "depth" or "both": what may be cut.
        base_loss: Held-out loss of the unpruned network, or None.
        interval: Part of the diffusion process, or None.
        attempts: Earlier rounds, oldest first.
    """

    target: float | int | str | None = None
    metric: str = "macs"
    mode: str = "width"
    base_loss: float | None = None
    interval: NoiseInterval | None = None
    attempts: tuple[Attempt, ...] = ()
