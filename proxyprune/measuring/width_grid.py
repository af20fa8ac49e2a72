"""The widths at which layers are measured, and the multiples of channels that pay on a machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxyprune.coupling.groups import ChannelGroup

TILES = {"cpu": 16, "cuda": 64, "mps": 32}
"""Multiple of channels from which on the kernels of a device gain nothing more."""

WORTH_ROUNDING = 1.05
"""A coarser multiple pays if widths off it take this much longer for their work."""


def grid_widths(full: Iterable[int], tile: int) -> tuple[int, ...]:
    """Return the widths at which one side of a layer is measured: multiples of the tile in growing steps, a few narrow ones, and its own.

    Args:
        full: Widths of the unpruned layers.
        tile: Multiple at which the device is fast.
    """
    own = set(full)
    most, width = max(own), tile
    found = own | {width for width in (tile // 4, tile // 2) if 0 < width < most}
    step = tile
    while width < most:
        found.add(width)
        width += step
        if width // step >= 4:
            step *= 2
    return tuple(sorted(found))


def off_tile(widths: Sequence[int], tile: int) -> dict[int, int]:
    """Return a width off the tile for each power of two below it: divisor -> width; empty for a side too narrow to tell.

    Args:
        widths: Measured widths of this side.
        tile: Multiple at which the device is fast.
    """
    reference = widths[-1] * 3 // 5 // tile * tile
    if len(widths) < 2 or reference < tile or reference + tile > widths[-1]:
        return {}
    divisors = [1 << power for power in range(tile.bit_length() - 1)]
    return {divisor: reference + divisor for divisor in divisors}


@dataclass(frozen=True)
class Penalty:
    """The factors by which a side of a layer takes longer off the tile.

    Attributes:
        groups: Indices of the prunable groups in the width.
        nanoseconds: Time of the unpruned layer, its weight beside others.
        factors: Greatest power of two that divides a width -> time for the time that its work would take on the tile.
    """

    groups: tuple[int, ...]
    nanoseconds: int
    factors: Mapping[int, float] = field(default_factory=dict)


def multiples_that_pay(groups: Sequence[ChannelGroup], penalties: Iterable[Penalty], tile: int) -> dict[str, int]:
    """Return for each group the smallest multiple of channels beyond which nothing is gained.

    A group gets no multiple above a quarter of its width, so that there are widths to choose from.

    Args:
        groups: The prunable groups.
        penalties: Of every side of every layer.
        tile: Largest multiple.
    """
    own: dict[int, list[Penalty]] = {}
    for penalty in penalties:
        for number in penalty.groups:
            own.setdefault(number, []).append(penalty)
    found = {}
    for index, group in enumerate(groups):
        sides = [penalty for penalty in own.get(index, ()) if penalty.factors]
        weight = sum(side.nanoseconds for side in sides)
        multiple = 1
        while weight and multiple < tile:
            mean = sum(side.nanoseconds * side.factors.get(multiple, 1.0) for side in sides) / weight
            if mean <= WORTH_ROUNDING:
                break
            multiple *= 2
        while multiple > max(1, group.width // 4):
            multiple //= 2
        found[group.id] = multiple
    return found
