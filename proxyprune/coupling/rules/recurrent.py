"""Recurrent layers: lstm, gru, rnn and their cells.

A hidden unit is one row of every gate in both weight matrices and biases, one column of the matrix that reads the state, and one entry of
the state. All layers and directions of one call share one state tensor, so they keep the same units.

Dropping a unit equals masking it: with zero rows its gates are 0.5 and its candidate is 0, so a state that starts at zero stays there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.coupling.outcome import Axes, Outcome, Term
from proxyprune.coupling.rules.products import NOT_ZERO, contract
from proxyprune.coupling.rules.walk import Rule, Walk, fixed, ops, repeat_whole
from proxyprune.tracing.nodes import arguments, op_name, output_shapes, tensor_argument

_GATES = {"lstm": 4, "gru": 3}
"""Gates that are stacked in the rows of a weight matrix; a plain RNN has one."""


@dataclass(frozen=True)
class _Cell:
    """Parameters of one layer in one direction.

    Attributes:
        reads_input: [gates * hidden, inputs].
        reads_state: [gates * hidden, state].
        biases: [gates * hidden] each, or none.
        projection: [state, hidden] of an LSTM whose state is projected, or None.
    """

    reads_input: Node
    reads_state: Node
    biases: tuple[Node, ...]
    projection: Node | None

    @property
    def gated(self) -> tuple[Node, ...]:
        """Parameters whose first dimension stacks the gates."""
        return (self.reads_input, self.reads_state, *self.biases)

    @property
    def parameters(self) -> tuple[Node, ...]:
        """All of them."""
        return self.gated if self.projection is None else (*self.gated, self.projection)


@dataclass(frozen=True)
class _Recurrence:
    """One call.

    Attributes:
        data: [..., inputs].
        states: The state, and the memory of an LSTM.
        layers: For every layer, its cell in each direction.
        gates: Number of gates.
    """

    data: Node
    states: tuple[Node, ...]
    layers: tuple[tuple[_Cell, ...], ...]
    gates: int

    @staticmethod
    def of(node: Node) -> _Recurrence:
        """Read the arguments of a call."""
        values = arguments(node)
        states = tuple(values["hx"]) if isinstance(values["hx"], list | tuple) else (values["hx"],)
        gates = _GATES.get(op_name(node).removeprefix("aten.").removesuffix("_cell"), 1)
        data = tensor_argument(node, 0)
        if "params" not in values:
            biases = tuple(value for name in ("b_ih", "b_hh") if isinstance(value := values[name], Node))
            return _Recurrence(data, states, ((_Cell(values["w_ih"], values["w_hh"], biases, None),),), gates)
        directions = 2 if values["bidirectional"] else 1
        cells = tuple(_cells(values["params"], values["num_layers"] * directions, 2 if values["has_biases"] else 0))
        layers = tuple(cells[first : first + directions] for first in range(0, len(cells), directions))
        return _Recurrence(data, states, layers, gates)

    @property
    def cells(self) -> tuple[_Cell, ...]:
        """The cells of all layers."""
        return tuple(cell for layer in self.layers for cell in layer)

    @property
    def directions(self) -> int:
        """Two for a bidirectional layer."""
        return len(self.layers[0])


def _cells(parameters: Sequence[Any], number: int, biases: int) -> Iterator[_Cell]:
    each = len(parameters) // number
    for first in range(0, len(parameters), each):
        reads_input, reads_state, *others = parameters[first : first + each]
        yield _Cell(reads_input, reads_state, tuple(others[:biases]), next(iter(others[biases:]), None))


def recurrent(walk: Walk, node: Node) -> Outcome:
    """Couple the hidden units across gates, layers and directions; every matrix is used once for each step and sequence."""
    call = _Recurrence.of(node)
    leading = walk.axes(call.data)[:-1]
    walk.pin((*leading, *(axis for state in call.states for axis in walk.axes(state)[:-1])), node, "is a step or a sequence of")
    hidden, state = _widths(walk, node, call)
    zero = all(map(walk.zero, call.states)) and all(walk.zero(parameter) for cell in call.cells for parameter in cell.parameters)
    if not zero and not all(walk.zero(cell.reads_state) for cell in call.cells):
        walk.pin((hidden, state), node, NOT_ZERO)
    result = repeat_whole(state, call.directions)
    for cell in call.layers[0]:
        contract(walk, node, (call.data, -1), (cell.reads_input, -1))
    for cell in (cell for layer in call.layers[1:] for cell in layer):
        walk.labels.equate(result, walk.axes(cell.reads_input)[-1], walk.where(node))
        if not zero and not walk.zero(cell.reads_input):
            walk.pin((result,), node, NOT_ZERO)
    ends: tuple[Axes, ...] = tuple(
        (*fixed(walk.shape(entry)[:-1]), axis) for entry, axis in zip(call.states, (state, hidden), strict=False)
    )
    outputs: tuple[Axes, ...] = ends if op_name(node).endswith("_cell") else ((*fixed(walk.shape(call.data)[:-1]), result), *ends)
    return Outcome(outputs=outputs, macs=tuple(_macs(walk, call)), zero=zero)


def _widths(walk: Walk, node: Node, call: _Recurrence) -> tuple[Axis, Axis]:
    """Return the axes of the hidden units and of the state, which differ for a projected state."""
    where = walk.where(node)
    rows = [walk.axes(parameter)[0] for cell in call.cells for parameter in cell.gated]
    units = [None if axis is None else walk.labels.tie_runs(axis, call.gates, where) for axis in rows]
    memory = [walk.axes(state)[-1] for state in call.states[1:]]
    read = [walk.axes(cell.reads_state)[1] for cell in call.cells]
    carried = [walk.axes(call.states[0])[-1], *read]
    projections = [walk.axes(cell.projection) for cell in call.cells if cell.projection is not None]
    if not projections:
        hidden = walk.labels.unify([*units, *memory, *carried], where)
        return hidden, hidden
    hidden = walk.labels.unify([*units, *memory, *(axes[1] for axes in projections)], where)
    return hidden, walk.labels.unify([*carried, *(axes[0] for axes in projections)], where)


def _macs(walk: Walk, call: _Recurrence) -> Iterator[Term]:
    steps = math.prod(walk.shape(call.data)[:-1])
    for cell in call.cells:
        for matrix in (cell.reads_input, cell.reads_state, cell.projection):
            if matrix is not None:
                yield Term.of((steps, None), *zip(walk.shape(matrix), walk.axes(matrix), strict=True))


def packed(walk: Walk, node: Node) -> Outcome:
    """_pack_padded_sequence and _pad_packed_sequence: steps and sequences become one dimension, or two again; features stay."""
    data = tensor_argument(node, 0)
    steps = 1 if op_name(node).endswith("pad_packed_sequence") else 2
    walk.pin(walk.axes(data)[:steps], node, "is a step or a sequence of")
    shape, lengths = output_shapes(node)
    features = walk.axes(data)[steps:]
    zero = walk.zero(data) and not arguments(node).get("padding_value", 0.0)
    return Outcome(outputs=((*fixed(shape[: len(shape) - len(features)]), *features), fixed(lengths)), zero=zero)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"), recurrent),
    **dict.fromkeys(ops("_pack_padded_sequence _pad_packed_sequence"), packed),
}
