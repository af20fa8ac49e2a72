"""Positions that no example call reads stay.

A table of positions is sliced to the length of the example input. Queries that serve training only are sliced off in evaluation. Another
call reads the rest, and how is not known here. The rest can therefore neither be cut nor be counted as free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from proxyprune.coupling.axes import AxisLabels, LabelArray
from proxyprune.coupling.outcome import Axes, Outcome
from proxyprune.tracing.nodes import arguments, op_name
from proxyprune.tracing.program import Program

_PARTS = frozenset({"aten.slice", "aten.narrow"})

UNREAD = "is not read by the example call beyond what a slice takes; an example call that reads more (also=) frees it"

_Key = tuple[str, str, int, bytes]
"""Module, parameter or op, dimension, and labels: the same tensor in several calls."""


def pin_unread(program: Program, leaves: Mapping[str, Axes], labels: AxisLabels, outcomes: Iterable[Mapping[Node, Outcome]]) -> None:
    """Pin positions of tensors of which every call takes slices only, and none takes these.

    Args:
        program: The program, with those of further calls.
        leaves: Axes of every parameter and buffer.
        labels: Where positions are pinned.
        outcomes: What the rules returned for the ops of each program.
    """
    tensors = [
        ((one.owners.get(node.name, ""), name), node, own)
        for one, of_ops in zip(program.programs, outcomes, strict=True)
        for node, name, own in _tensors(one, leaves, of_ops)
    ]
    sliced = {place for place, node, _ in tensors if node.users and all(_is_slice_of(user, node) for user in node.users)}
    axes: dict[_Key, LabelArray] = {}
    read: dict[_Key, NDArray[np.bool_]] = {}
    for place, node, own in tensors:
        for dim, axis in enumerate(own) if place in sliced else ():
            if axis is not None:
                key = (*place, dim, axis.tobytes())
                axes[key] = axis
                read[key] = read.get(key, np.zeros(len(axis), bool)) | _positions_read(node, dim, len(axis))
    for key, positions in read.items():
        if not positions.all():
            labels.pin(axes[key][~positions], UNREAD)


def _tensors(program: Program, leaves: Mapping[str, Axes], outcomes: Mapping[Node, Outcome]) -> Iterator[tuple[Node, str, Axes]]:
    """Yield parameters and results of ops, with a name and their axes."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.state:
            yield node, program.state[node.name], leaves[program.state[node.name]]
        elif node in outcomes and len(outcomes[node].outputs) == 1:
            yield node, op_name(node), outcomes[node].outputs[0]


def _positions_read(node: Node, dim: int, size: int) -> NDArray[np.bool_]:
    """Return which positions of a dimension the users of a tensor read: none, for a tensor without users."""
    if any(not _is_slice_of(user, node) for user in node.users):
        return np.ones(size, bool)
    found = np.zeros(size, bool)
    for user in node.users:
        values = arguments(user)
        if int(values["dim"]) % len(node.meta["val"].shape) != dim:
            found[:] = True
        elif op_name(user) == "aten.narrow":
            start = int(values["start"]) % size
            found[start : start + int(values["length"])] = True
        else:
            found[slice(values["start"], values["end"], values["step"])] = True
    return found


def _is_slice_of(user: Node, node: Node) -> bool:
    if op_name(user) not in _PARTS or user.args[0] is not node:
        return False
    return not any(isinstance(arguments(user).get(name), Node) for name in ("start", "end", "length"))
