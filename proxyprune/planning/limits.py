"""Limits that a plan respects, whatever the scores are: keep patterns, floors, ceilings and rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyprune.errors import InputError, KeepPatternError
from proxyprune.support.checks import is_count

Bound = float | int

AUTO = "auto"
"""Take the multiple of channels that pays on this machine, for each group."""


@dataclass(frozen=True)
class Limits:
    """Limits of the caller, which hold whatever the scores are.

    A pattern is a name, a dotted prefix of one, an fnmatch pattern, or several of them joined by "|". Names are those of blocks, channel
    groups, modules and parameters.

    Attributes:
        keep: What must stay exactly as it is. A group is kept when any of its members is matched, so a kept module keeps its input
            width as well as its output width; a block with a match inside is not removed. A matched group keeps a block from being
            removed only if it lies in that block alone; the width of a residual stream stays without the blocks that it passes.
        floors: Least that stays, by pattern: a fraction (float, 0 to 1) or a number of channels (int). Reaches the groups that live
            entirely inside what is matched, or, when there are none, every group that touches it. The highest match counts. A block with
            a floor above 0 is not removed; for groups this holds as for keep.
        ceilings: Most that stays, in the same units, with the same reach. The lowest match counts; keep patterns win.
        round_to: Channels of each cut group should be a multiple of this; "auto" takes the multiple that pays on this machine.
        remove: Removable blocks that leave as a whole, in every mode.
    """

    keep: tuple[str, ...] = ()
    floors: Mapping[str, Bound] = field(default_factory=dict)
    ceilings: Mapping[str, Bound] = field(default_factory=dict)
    round_to: int | str = 1
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.round_to != AUTO and not is_count(self.round_to, 1):
            raise InputError(f"round_to must be a whole number of channels, at least 1, or 'auto'; found {self.round_to!r}.")
        for pattern in (*self.keep, *self.floors, *self.ceilings, *self.remove):
            if not isinstance(pattern, str) or not pattern:
                raise KeepPatternError(f"Expected patterns as non-empty strings, found {pattern!r}.")
        for kind, bounds in (("floor", self.floors), ("ceiling", self.ceilings)):
            for pattern, bound in bounds.items():
                _check_bound(kind, pattern, bound)


def _check_bound(kind: str, pattern: str, bound: object) -> None:
    if is_count(bound, 1) or (isinstance(bound, float) and 0.0 <= bound <= 1.0):
        return
    raise InputError(
        f"The {kind} for {pattern!r} must be a fraction (float, 0 to 1) or a number of channels (int, at least 1); found {bound!r}."
    )
