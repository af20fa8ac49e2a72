"""What a plan may spend: "3.4G", 0.6 or 3_400_000_000, read exactly."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from fractions import Fraction

from proxyprune.errors import TargetError

Target = float | int | str

METRICS = ("macs", "params")
_SUFFIX = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_NUMBER = re.compile(r"\s*(?P<number>[+-]?\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)\s*(?P<suffix>[KMGTkmgt]?|%)\s*")
_EXPECTED = "expected a fraction between 0 and 1 such as 0.6, or an absolute number such as 3_400_000_000 or '3.4G' (K, M, G, T)"


@dataclass(frozen=True)
class Budget:
    """A target, turned into whole MACs or parameters.

    Attributes:
        asked: The target as the caller wrote it.
        metric: "macs" or "params".
        base: What the unpruned model spends.
        limit: The most a plan may spend; 0 < limit < base.
    """

    asked: Target
    metric: str
    base: int
    limit: int

    @property
    def unit(self) -> str:
        """The metric, as it is written in sentences."""
        return {"macs": "MACs", "params": "parameters"}[self.metric]

    def share(self, amount: int) -> float:
        """An amount as a fraction of the base."""
        return amount / self.base


def parse_budget(target: Target, *, base: int, metric: str = "macs") -> Budget:
    """Read a target.

    Args:
        target: Fraction of the base (0 < t < 1), or an absolute number of MACs or parameters: an int, a whole float from
            1000 up (a smaller one is a fraction gone wrong), or a string with an optional suffix K, M, G or T (powers of 1000).
            Strings may also be a percentage ("60%").
        base: What the unpruned model spends, in units of the metric.
        metric: "macs" or "params".

    Returns:
        The budget; fractions are rounded down to whole units.

    Raises:
        TargetError: If the target is not a number, not positive, or does not ask for a reduction.
    """
    value = check_target(target, metric)
    limit = math.floor(value * base) if value < 1 else math.floor(value)
    budget = Budget(asked=_plain(target), metric=metric, base=base, limit=limit)
    if limit >= base:
        raise TargetError(
            f"Target {target!r} asks for at most {limit:,} {budget.unit}, but the unpruned model has {base:,}: nothing would be cut; "
            f"{_EXPECTED}."
        )
    return budget


def check_target(target: Target, metric: str) -> Fraction:
    """Return the exact value of a target: a share below 1, or an amount.

    Raises:
        TargetError: If no network could have this target, or the metric is unknown.
    """
    if metric not in METRICS:
        raise TargetError(f"Unknown metric {metric!r}; expected one of {', '.join(METRICS)}.")
    value = _read(target)
    if value <= 0:
        raise TargetError(f"Target {target!r} is not positive; {_EXPECTED}.")
    if value >= 1 and _is_fraction_gone_wrong(target, value):
        raise TargetError(f"Target {target!r} is neither below 1 nor a whole number of {metric}; {_EXPECTED}.")
    return value


def _is_fraction_gone_wrong(target: Target, value: Fraction) -> bool:
    """Whether a value from 1 up was meant as a share, or as nothing at all: 1.5, "1.5", "150%", 2.0."""
    if isinstance(target, str):
        text = target.strip()
        return text.endswith("%") or (value.denominator != 1 and not text[-1].isalpha())
    return value.denominator != 1 or (isinstance(target, float) and value < 1000)


def _plain(target: Target) -> Target:
    """The target without numpy's types, which JSON does not know."""
    if isinstance(target, str):
        return target
    return float(target) if isinstance(target, float) or target != int(target) else int(target)


def _is_number(value: object) -> bool:
    """Also true of numpy's numbers."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _read(target: Target) -> Fraction:
    if isinstance(target, str):
        match = _NUMBER.fullmatch(target)
        if match is None:
            raise TargetError(f"Cannot read the target {target!r}; {_EXPECTED}.")
        number = Fraction(match["number"].replace("_", ""))
        return number / 100 if match["suffix"] == "%" else number * _SUFFIX[match["suffix"].upper()]
    if not _is_number(target) or not (isinstance(target, int) or math.isfinite(target)):  # isfinite cannot take an int above 1e308
        raise TargetError(f"Cannot use the target {target!r} of type {type(target).__name__}; {_EXPECTED}.")
    # repr, not the binary value: 0.6 means six tenths.
    return Fraction(int(target)) if target == int(target) else Fraction(repr(float(target)))
