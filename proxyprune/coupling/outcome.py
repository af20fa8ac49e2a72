"""Result of an axis rule: axes, sizes and costs of one op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyprune.coupling.axes import Axis, LabelArray

Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class CommonDivisor:
    """The greatest common divisor of `number` and the kept size of `axis`: as many norm groups as still fit."""

    number: int
    axis: LabelArray


Size = int | LabelArray | CommonDivisor
"""An integer argument: constant, the number of kept positions of an axis, or a divisor of that."""


Sizes = dict[int | str, Size | tuple[Size, ...]]
"""Position or name of an argument -> the integers it must hold after pruning."""


@dataclass(frozen=True, slots=True)
class Term:
    """constant * product of the kept sizes of `axes`: one summand of a cost."""

    constant: int
    axes: tuple[LabelArray, ...] = ()

    @staticmethod
    def of(*dimensions: tuple[int, Axis]) -> Term:
        """Product over (size, axis) pairs; fixed dimensions go into the constant."""
        constant, axes = 1, []
        for size, axis in dimensions:
            if axis is None:
                constant *= size
            else:
                axes.append(axis)
        return Term(constant, tuple(axes))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The effect of one op on axes.

    Attributes:
        outputs: Axes of each output tensor.
        sizes: Integer arguments that follow an axis.
        macs: Multiply-accumulates.
        zero: The output is zero at every dropped position when the parameters' dropped slices are.
        known: False for an op without a rule, or with arguments that its rule does not know.
        costed: False for an op that multiplies in a way that no cost rule covers.
    """

    outputs: tuple[Axes, ...]
    sizes: Mapping[int | str, Size | tuple[Size, ...]] = field(default_factory=dict)
    macs: tuple[Term, ...] = ()
    zero: bool = False
    costed: bool = True
    known: bool = True
