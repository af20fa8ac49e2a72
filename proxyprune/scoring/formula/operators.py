"""Operators of formulas, by name.

All of them take and return one number for each atom of the network, float64. Values outside of an operator's domain have a fixed result, so
that only an overflow gives a number that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Sections = Sequence[slice]
"""The atoms of each group, in the order of the groups."""


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        meaning: For people and for language models.
        arity: Number of operands.
        apply: (operands, sections) -> values.
        precedence: Of an infix operator, larger binds tighter; None for one that is written as a function.
    """

    meaning: str
    arity: int
    apply: Callable[[Sequence[FloatArray], Sections], FloatArray]
    precedence: int | None = None


def _elementwise(function: Callable[..., Any]) -> Callable[[Sequence[FloatArray], Sections], FloatArray]:
    return lambda operands, _: np.asarray(function(*operands), dtype=np.float64)


def _within_group(function: Callable[[FloatArray], Any]) -> Callable[[Sequence[FloatArray], Sections], FloatArray]:
    def apply(operands: Sequence[FloatArray], sections: Sections) -> FloatArray:
        found = np.array(operands[0], dtype=np.float64)
        for section in sections:
            if found[section].size:
                found[section] = function(found[section])
        return found

    return apply


def _quotient(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.divide(x, y, out=np.zeros_like(x), where=y != 0.0)


def _to_unit_range(x: FloatArray) -> FloatArray:
    return _spread(x, x - x.min(), x.max() - x.min())


def _standardised(x: FloatArray) -> FloatArray:
    return _spread(x, x - x.mean(), x.std())


def _spread(x: FloatArray, distance: FloatArray, unit: np.float64) -> FloatArray:
    """Return distances in a unit; 0 if the values of the group differ by rounding only."""
    return distance / unit if unit > _ROUNDING * np.abs(x).max() else np.zeros_like(x)


_ROUNDING = 1e-12
"""Relative spread below which values count as equal."""


OPERATORS: Mapping[str, Operator] = {
    "+": Operator("sum", 2, _elementwise(np.add), 1),
    "-": Operator("difference", 2, _elementwise(np.subtract), 1),
    "*": Operator("product", 2, _elementwise(np.multiply), 2),
    "/": Operator("quotient, 0 where the divisor is 0", 2, _elementwise(_quotient), 2),
    "max": Operator("the larger one", 2, _elementwise(np.maximum)),
    "min": Operator("the smaller one", 2, _elementwise(np.minimum)),
    "abs": Operator("absolute value", 1, _elementwise(np.abs)),
    "sqrt": Operator("root of the absolute value", 1, _elementwise(lambda x: np.sqrt(np.abs(x)))),
    "square": Operator("square", 1, _elementwise(np.square)),
    "log": Operator("natural logarithm of 1 + |x|", 1, _elementwise(lambda x: np.log1p(np.abs(x)))),
    "norm": Operator("brought to [0, 1] within the channel group, by its least and its largest value", 1, _within_group(_to_unit_range)),
    "z": Operator("minus the mean, divided by the standard deviation, within the channel group", 1, _within_group(_standardised)),
    "mean": Operator("mean over the channel group", 1, _within_group(np.mean)),
}
"""Name -> operator."""
