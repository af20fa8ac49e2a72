"""Factors that a forward computes from a width, such as `x.shape[1] ** 0.5` in a norm.

A traced program holds such a factor as the number that it was. The pruned forward computes another one, and that is right: the factor
follows the width, as a mean over it does. A constant that the code wrote down gives the same number at both widths and never differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor
from torch.fx import Node

from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.nodes import op_name, output_shapes

_SCALING = frozenset(f"aten.{name}" for name in ("mul", "mul_", "div", "div_"))
_COUNTING = frozenset(f"aten.{name}" for name in ("mul", "eq", "ne", "floor_divide"))
_POWERS = (0.5, 1.0, 0.25, 2.0, 1 / 3, 1.5)
"""Exponents that code raises widths to; their negatives count as well."""

_TOLERANCE = 1e-6


def follows_width(prediction: Prediction, node: Node, before: object, after: object) -> bool:
    """Return whether a factor changed as a power of a width did that was cut at the same op.

    Args:
        prediction: The cut that the pruned forward ran with.
        node: The traced op that takes the factor; only multiplications and divisions count, and comparisons of counted entries.
        before: The factor in the traced program.
        after: The factor in the pruned forward.
    """
    if type(before) is int and type(after) is int:
        return _counts_entries(node) and any(before * new == after * old for old, new in _changed_widths(prediction))
    if op_name(node) not in _SCALING or not isinstance(before, float) or not isinstance(after, float):
        return False
    if before == after or before * after <= 0:
        return before == after
    change = math.log(after / before)
    return any(
        math.isclose(abs(change), power * abs(math.log(new / old)), rel_tol=_TOLERANCE)
        for old, new in _changed_sizes(prediction, node)
        for power in _POWERS
    )


def _counts_entries(node: Node) -> bool:
    """Return True for integer arithmetic on one number, such as tokens * x.shape[-1] == features.numel() in a check of counts."""
    value = node.all_input_nodes[0].meta.get("val") if len(node.all_input_nodes) == 1 else None
    return op_name(node) in _COUNTING and isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point()


def _changed_widths(prediction: Prediction) -> Iterator[tuple[int, int]]:
    """Old and new sizes of the dimensions of parameters that are cut."""
    yield from {(cut.size, len(cut.kept)) for cut in prediction.cuts}


def _changed_sizes(prediction: Prediction, node: Node) -> Iterator[tuple[int, int]]:
    """Old and new sizes of the dimensions of an op's inputs and output that were cut."""
    for near in (node, *node.all_input_nodes):
        if near in prediction.coupling.outcomes and not prediction.is_removed(near):
            for index, shape in enumerate(output_shapes(near)):
                if shape:
                    pairs = zip(shape, prediction.output_shape(near, index), strict=True)
                    yield from ((old, new) for old, new in pairs if old != new and new > 0)
