"""Formulas as data: trees of features, constants and operators, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from proxyprune.errors import FormulaError
from proxyprune.scoring.formula.operators import OPERATORS, FloatArray, Sections
from proxyprune.support.checks import is_number

FEATURES: Mapping[str, str] = {
    "w": "2-norm of the weights of all coupled slices",
    "w1": "1-norm of these weights",
    "g": "2-norm of the loss gradient of these weights, mean over the batches",
    "wg": "estimated change of the loss without the channel, to first order (weight times gradient), mean over the batches",
    "act": "root mean square of the channel, where layers read it",
    "var": "variance of the channel there",
    "obs": "error of the layers that read the channel, after a refit of the other channels",
    "macs": "share of the network's MACs that leaves with the channel",
}
"""Name of a feature -> its meaning. All are >= 0, one number for each atom of a channel group."""

MOST_NODES = 100
DEEPEST = 30
"""Limits of a formula: nodes, and levels."""


@dataclass(frozen=True)
class Feature:
    """A feature of the channels.

    Raises:
        FormulaError: If there is no such feature.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in FEATURES:
            raise FormulaError(f"Unknown feature {self.name!r}; expected one of {', '.join(FEATURES)}.")


@dataclass(frozen=True)
class Constant:
    """The same number for all channels.

    Raises:
        FormulaError: If it is not finite, or below 0; write `0 - 2` for a negative number.
    """

    value: float

    def __post_init__(self) -> None:
        if not is_number(self.value, 0.0):
            raise FormulaError(f"Expected a constant to be a finite number from 0 up, found {self.value!r}. Write 0 - 2 for -2.")
        object.__setattr__(self, "value", float(self.value) + 0.0)  # -0.0 becomes 0.0


@dataclass(frozen=True)
class Operation:
    """An operator with its operands.

    Raises:
        FormulaError: If the operator is unknown or has another number of operands, or if the tree exceeds `MOST_NODES` or `DEEPEST`.
    """

    operator: str
    operands: tuple[Expression, ...]
    nodes: int = 0
    levels: int = 0

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise FormulaError(f"Unknown operator {self.operator[:40]!r}; expected one of {', '.join(OPERATORS)}.")
        expected = OPERATORS[self.operator].arity
        if len(self.operands) != expected:
            raise FormulaError(f"Operator '{self.operator}' takes {expected} operand(s), found {len(self.operands)}.")
        object.__setattr__(self, "nodes", 1 + sum(map(nodes, self.operands)))
        object.__setattr__(self, "levels", 1 + max(map(levels, self.operands)))
        if self.nodes > MOST_NODES or self.levels > DEEPEST:
            raise FormulaError(
                f"The formula is too large: it has at least {self.nodes} nodes on {self.levels} levels, and {MOST_NODES} nodes on "
                f"{DEEPEST} levels are the most. Shorten it."
            )

    def __str__(self) -> str:
        return written(self)


Expression: TypeAlias = Feature | Constant | Operation


def nodes(expression: Expression) -> int:
    """Return the size of a formula: operators, features and constants."""
    return expression.nodes if isinstance(expression, Operation) else 1


def levels(expression: Expression) -> int:
    """Return the depth of a formula; a single feature has one level."""
    return expression.levels if isinstance(expression, Operation) else 1


def features_of(expression: Expression) -> tuple[str, ...]:
    """Return the features that a formula reads, in the order of `FEATURES`."""
    read = {part.name for part in parts_of(expression) if isinstance(part, Feature)}
    return tuple(name for name in FEATURES if name in read)


def parts_of(expression: Expression) -> Iterator[Expression]:
    """Yield every subtree, the whole tree first."""
    yield expression
    if isinstance(expression, Operation):
        for operand in expression.operands:
            yield from parts_of(operand)


def written(expression: Expression) -> str:
    """Return the text form, which `parsed` reads; with no more parentheses than needed."""
    if isinstance(expression, Feature):
        return expression.name
    if isinstance(expression, Constant):
        return repr(int(expression.value)) if expression.value.is_integer() and expression.value < 1e6 else repr(expression.value)
    own = OPERATORS[expression.operator].precedence
    if own is None:
        return f"{expression.operator}({', '.join(map(written, expression.operands))})"
    left, right = expression.operands
    return f"{_operand(left, own)} {expression.operator} {_operand(right, own + 1)}"


def _operand(expression: Expression, least: int) -> str:
    """Write an operand of an infix operator, in parentheses if it binds less tightly than `least`."""
    precedence = OPERATORS[expression.operator].precedence if isinstance(expression, Operation) else None
    text = written(expression)
    return text if precedence is None or precedence >= least else f"({text})"


def values_of(expression: Expression, features: Mapping[str, FloatArray], sections: Sections) -> FloatArray:
    """Return the value of a formula for each atom.

    Args:
        expression: The formula.
        features: Values of the features that it reads, [atoms].
        sections: The atoms of each group.

    Raises:
        FormulaError: If a value is not finite; the message names the first feature or operator that gave one.
    """
    with np.errstate(all="ignore"):  # what is not finite is reported below
        return _values(expression, features, sections)


def _values(expression: Expression, features: Mapping[str, FloatArray], sections: Sections) -> FloatArray:
    if isinstance(expression, Constant):
        length = max((section.stop for section in sections), default=0)
        return np.full(length, expression.value)
    if isinstance(expression, Feature):
        found, advice = features[expression.name], "Look at the network's activations and gradients on the calibration batches."
    else:
        found = OPERATORS[expression.operator].apply([_values(part, features, sections) for part in expression.operands], sections)
        advice = "Bring its operands to a smaller range."
    if not np.isfinite(found).all():
        count = int((~np.isfinite(found)).sum())
        raise FormulaError(f"{count} of {len(found)} values of '{written(expression)}' are not finite on this network. {advice}")
    return found
