"""Parameters that the traced call does not reach: they stay whole, and so does every axis that they may share.

An auxiliary head, a mask token or a second tower runs in other calls than the traced one. How it is wired to the rest is unknown, so
equal sizes are the only evidence. An input whose size neither another axis nor the layer before explains may be a concatenation or a
flattened map of any narrower axes.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxyprune.coupling.axes import Axis, AxisLabels
from proxyprune.tracing.program import Program

UNREACHED = "belongs to a parameter that the example call does not reach"


def pin_unreached(program: Program, leaves: Mapping[str, tuple[Axis, ...]], labels: AxisLabels) -> None:
    """Pin unreached parameters, and the axes of reached ones that may be shared with them."""
    if not program.unreached:
        return
    hidden = set(program.unreached)
    for name in program.unreached:
        for axis in leaves[name]:
            labels.pin(axis, UNREACHED)
    equal, wider = _shared_sizes(program)
    for name, axes in leaves.items():
        for axis in axes if name not in hidden else ():
            if axis is not None and (other := equal.get(len(axis)) or _first_wider(wider, len(axis))):
                labels.pin(axis, f"may be shared with {other}, which the example call does not reach")


def _shared_sizes(program: Program) -> tuple[dict[int, str], dict[int, str]]:
    """Sizes of unreached dimensions, and sizes of unreached inputs that nothing explains, with the first parameter that has them."""
    hidden = set(program.unreached)
    explained = {size for name, shape in program.shapes.items() if name not in hidden for size in shape}
    equal: dict[int, str] = {}
    wider: dict[int, str] = {}
    before: dict[str, int] = {}  # parent module -> outputs of the unreached layer before this one
    for name in program.unreached:
        shape = program.shapes[name]
        for size in shape:
            equal.setdefault(size, name)
        if len(shape) < 2:
            continue
        parent = name.rpartition(".")[0].rpartition(".")[0]
        outputs = before.get(parent, 0)
        if shape[1] not in explained and not (outputs > 1 and shape[1] % outputs == 0):
            wider.setdefault(shape[1], name)
        before[parent] = shape[0]
        explained.add(shape[0])
    return equal, wider


def _first_wider(wider: Mapping[int, str], size: int) -> str | None:
    return next((name for whole, name in wider.items() if whole > size), None)
