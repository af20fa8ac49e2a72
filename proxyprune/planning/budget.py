"""The budget of a plan: "3.4G", 0.6, 3_400_000_000 or "5ms", read exactly; for one metric or for several."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from proxyprune.errors import TargetError

SingleTarget = float | int | str
Target = SingleTarget | Mapping[str, SingleTarget]
"""A target of one metric, or targets by metric, all of which hold."""

METRICS = ("macs", "params")
"""Metrics that every plan counts exactly."""

BUDGETED = (*METRICS, "time")
"""Metrics of targets; time is predicted, in nanoseconds."""

_LARGEST_PERCENTAGE = 100
"""Targets up to this many MACs or parameters may have been meant as percentages."""

_SUFFIX = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_DURATION = re.compile(r"\s*(?P<number>\d[\d_]*(?:\.\d*)?|\.\d+)\s*(?P<unit>ns|us|ms|s)\s*")
_NUMBER = re.compile(r"\s*(?P<number>[+-]?\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)\s*(?P<suffix>[KMGTkmgt]?|%)\s*")
_EXPECTED = "expected a fraction between 0 and 1 such as 0.6, or an absolute number such as 3_400_000_000 or '3.4G' (K, M, G, T)"


_EXPECTED_TIME = "expected a fraction between 0 and 1 such as 0.6, or a duration such as '5ms' (ns, us, ms, s)"


@dataclass(frozen=True)
class Budget:
    """A target, turned into whole MACs, parameters or nanoseconds.

    Attributes:
        asked: The target as the caller wrote it.
        metric: "macs", "params" or "time".
        base: What the unpruned model spends.
        limit: The most a plan may spend; 0 < limit < base.
    """

    asked: SingleTarget
    metric: str
    base: int
    limit: int

    @property
    def unit(self) -> str:
        """The metric, as it is written in sentences."""
        return {"macs": "MACs", "params": "parameters", "time": "nanoseconds"}[self.metric]

    def share(self, amount: int) -> float:
        """Return an amount as a fraction of the base."""
        return amount / self.base


def parse_budget(target: Target, *, base: int, metric: str = "macs") -> Budget:
    """Read a target.

    Args:
        target: Fraction of the base (0 < t < 1), or an absolute number of MACs or parameters: an int, a whole float from
            1000 up (a smaller one is a fraction gone wrong), or a string with an optional suffix K, M, G or T (powers of 1000).
            Strings may also be a percentage ("60%"). Amounts of time are strings with a unit ("5ms").
        base: What the unpruned model spends, in units of the metric.
        metric: "macs", "params" or "time".

    Returns:
        The budget; fractions are rounded down to whole units.

    Raises:
        TargetError: If the target is not a number, not positive, or does not ask for a reduction.
    """
    value = check_target(target, metric)
    assert not isinstance(target, Mapping)
    limit = math.floor(value * base) if value < 1 else math.floor(value)
    budget = Budget(asked=_plain(target), metric=metric, base=base, limit=limit)
    if limit >= base:
        raise TargetError(
            f"Target {target!r} allows {limit:,} {budget.unit}, but the unpruned model has {base:,}: nothing would be cut; "
            f"{_EXPECTED if metric in METRICS else _EXPECTED_TIME}."
        )
    return budget


def targets_of(target: Target, metric: str) -> dict[str, SingleTarget]:
    """Return the targets by metric, in the order of `BUDGETED`.

    Args:
        target: One target, or targets by metric.
        metric: What one target budgets; not used for several.

    Raises:
        TargetError: If there is none, a metric is unknown, or no network could have one of the targets.
    """
    by_metric = dict(target) if isinstance(target, Mapping) else {metric: target}
    if not by_metric:
        raise TargetError(f"Targets by metric are empty; expected at least one of {', '.join(BUDGETED)}, such as {{'macs': 0.7}}.")
    for name, value in by_metric.items():
        check_target(value, name)
    return {name: by_metric[name] for name in BUDGETED if name in by_metric}


def check_target(target: Target, metric: str) -> Fraction:
    """Return the exact value of a target: a share below 1, or an amount.

    Raises:
        TargetError: If no network could have this target, it is several, or the metric is unknown.
    """
    if isinstance(target, Mapping):
        raise TargetError(f"Several targets, {', '.join(map(str, target))}, cannot be used here; expected one of {metric}.")
    if metric not in BUDGETED:
        raise TargetError(f"Unknown metric {metric!r}; expected one of {', '.join(BUDGETED)}.")
    if metric == "time":
        return _read_time(target)
    value = _read(target)
    if value <= 0:
        raise TargetError(f"Target {target!r} is not positive; {_EXPECTED}.")
    if value >= 1 and _is_fraction_gone_wrong(target, value):
        raise TargetError(f"Target {target!r} is neither below 1 nor a whole number of {metric}; {_EXPECTED}.")
    return value


def _read_time(target: SingleTarget) -> Fraction:
    """Return a share below 1, or whole nanoseconds from 1 up."""
    duration = _DURATION.fullmatch(target) if isinstance(target, str) else None
    if duration is not None:
        number = Fraction(duration["number"].replace("_", "")) * _NANOSECONDS[duration["unit"]]
        if number >= 1:
            return number
    elif not isinstance(target, str) or _NUMBER.fullmatch(target):
        value = _read(target)
        if 0 < value < 1:
            return value
    raise TargetError(f"Cannot use {target!r} as a target of time; {_EXPECTED_TIME}.")


def _is_fraction_gone_wrong(target: SingleTarget, value: Fraction) -> bool:
    """Return True if a value from 1 up was meant as a share, or as nothing at all: 1.5, "1.5", "150%", 2.0."""
    if isinstance(target, str):
        text = target.strip()
        return text.endswith("%") or (value.denominator != 1 and not text[-1].isalpha())
    return value.denominator != 1 or (isinstance(target, float) and value < 1000)


def _plain(target: SingleTarget) -> SingleTarget:
    """Return the target without numpy's types, which JSON does not know."""
    if isinstance(target, str):
        return target
    return float(target) if isinstance(target, float) or target != int(target) else int(target)


def _is_number(value: object) -> bool:
    """Also true of numpy's numbers."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _read(target: SingleTarget) -> Fraction:
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


def share_hint(budget: Budget) -> str:
    """Return a question for a target such as 50, which may have been meant as a percentage; otherwise an empty string."""
    few = budget.metric in METRICS and budget.limit <= _LARGEST_PERCENTAGE and str(budget.asked).strip() == str(budget.limit)
    return f" Did you mean {budget.limit / 100:g}, or '{budget.limit}%'?" if few else ""
