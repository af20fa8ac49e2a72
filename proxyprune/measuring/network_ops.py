"""The ops of a traced network that take time, with the widths that each depends on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.polynomial import LinearForm
from proxyprune.measuring.op_calls import OpCall, TensorSpec, call_of, computes, tensor_of
from proxyprune.planning.constraints import lattice
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.names import is_inside
from proxyprune.tracing.nodes import arguments, op_name, output_shapes

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
_TWO_SIDED = frozenset({"aten.linear", "aten.convolution"} | {f"aten.conv{kind}{n}d" for kind in ("", "_transpose") for n in "123"})


@dataclass(frozen=True)
class TwoSided:
    """A linear layer or an ungrouped convolution: its time depends on two widths.

    Attributes:
        node: The op.
        call: Its call in the unpruned network.
        forms: Channels read and channels made.
        full: The same in the unpruned network.
        dims: Where they stand: (argument, dimension) for each.
        block: Block that it lies in.
    """

    node: Node
    call: OpCall
    forms: tuple[LinearForm, LinearForm]
    full: tuple[int, int]
    dims: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
    block: str

    def at(self, read: int, made: int) -> OpCall:
        """Return the same call at other widths."""
        shapes: dict[str, dict[int, int]] = {}
        for places, width in zip(self.dims, (read, made), strict=True):
            for name, dim in places:
                shapes.setdefault(name, {})[dim] = width
        values: dict[str, Any] = dict(zip(_argument_names(self.node), self.call.args, strict=False)) | dict(self.call.kwargs)
        for name, changes in shapes.items():
            spec = values[name]
            assert isinstance(spec, TensorSpec)
            shape = tuple(changes.get(dim, size) for dim, size in enumerate(spec.shape))
            values[name] = replace(spec, shape=shape)
        count = len(self.call.args)
        args = tuple(values[name] for name in _argument_names(self.node)[:count])
        return OpCall.of(self.node, args, {name: values[name] for name in self.call.kwargs})

    @property
    def family(self) -> str:
        """Text of the call with both widths left open: equal families share their measurements."""
        return self.at(0, 0).text


@dataclass(frozen=True)
class OneSided:
    """Any other op: its time follows the amount of work that it does.

    Attributes:
        node: The op.
        calls: Its calls with all widths of the network at several shares.
        amounts: Amount of work of each.
        work: The amount, as summands.
        block: Block that it lies in.
    """

    node: Node
    calls: tuple[OpCall, ...]
    amounts: tuple[int, ...]
    work: tuple[tuple[int, tuple[LinearForm, ...]], ...]
    block: str


def ops_of(graph: ModelGraph) -> tuple[TwoSided | OneSided, ...]:
    """Return every op of a traced network that does work of its own, in execution order."""
    reader = _Reader(graph)
    return tuple(reader.two_sided(node) or reader.one_sided(node) for node in graph.program.calls if computes(node))


def calls_by_block(graph: ModelGraph) -> dict[str, int]:
    """Return the number of ops that do work of their own in every block; "" counts those outside."""
    reader = _Reader(graph)
    return dict(Counter(reader.block(node) for node in graph.program.calls if computes(node)))


class _Reader:
    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._blocks = tuple(block.id for block in graph.blocks)
        self._predictions = [Prediction(graph, _kept(graph, share), frozenset()) for share in _SHARES]

    def two_sided(self, node: Node) -> TwoSided | None:
        """Read a layer; None for an op that is none, and for a layer with other widths that vary."""
        if op_name(node) not in _TWO_SIDED or int(arguments(node).get("groups", 1)) != 1:
            return None
        call = call_of(node, self._predictions[0])
        values = arguments(node)
        names = ("input", "weight") + (("bias",) if isinstance(values.get("bias"), Node) else ())
        axes = {name: self._axes(values[name]) for name in names}
        transposed = bool(values.get("transposed", "transpose" in op_name(node)))
        channel = len(axes["input"]) - (1 if op_name(node) == "aten.linear" else len(axes["weight"]) - 1)
        read = (("input", channel), ("weight", int(not transposed)))
        made = (("weight", int(transposed)), *((name, 0) for name in names[2:]))
        open_dims = {(name, dim) for name in names for dim, axis in enumerate(axes[name]) if self._form(axis)[1]}
        if not open_dims <= {*read, *made}:
            return None
        forms = tuple(self._sized(values[places[0][0]], places[0][1]) for places in (read, made))
        shapes = {name: tensor_of(values[name], self._predictions[0]) for name in ("input", "weight")}
        full = tuple(shapes[name].shape[dim] for ((name, dim), *_) in (read, made))  # type: ignore[union-attr]  # input and weight of a product are tensors
        return TwoSided(node, call, forms, full, (read, made), self.block(node))  # type: ignore[arg-type]  # one entry for each side

    def one_sided(self, node: Node) -> OneSided:
        """Read any op."""
        work = self._work(node)
        found: dict[int, OpCall] = {}
        for prediction in self._predictions:
            amount = sum(constant * math.prod(self._value(form, prediction) for form in factors) for constant, factors in work)
            found.setdefault(amount, call_of(node, prediction))
        amounts = tuple(sorted(found))
        return OneSided(node, tuple(found[amount] for amount in amounts), amounts, work, self.block(node))

    def _work(self, node: Node) -> tuple[tuple[int, tuple[LinearForm, ...]], ...]:
        """Multiplications where the op's cost is known, elements read and written elsewhere."""
        outcome = self._graph.coupling.outcomes[node]
        if outcome.macs:
            return tuple((term.constant, tuple(self._form(axis) for axis in term.axes)) for term in outcome.macs)
        tensors = [(shape, axes) for shape, axes in zip(output_shapes(node), outcome.outputs, strict=True)]
        tensors += [(output_shapes(source)[0], self._axes(source)) for source in node.all_input_nodes]
        return tuple(self._elements(shape, axes) for shape, axes in tensors)

    def _elements(self, shape: Sequence[int], axes: Sequence[Axis]) -> tuple[int, tuple[LinearForm, ...]]:
        forms = [(size, self._form(axis)) for size, axis in zip(shape, axes, strict=True)]
        constant = math.prod(size for size, (_, coefficients) in forms if not coefficients)
        return constant, tuple(form for _, form in forms if form[1])

    def _axes(self, node: Node) -> tuple[Axis, ...]:
        program, coupling = self._graph.program, self._graph.coupling
        if node.op == "placeholder" and node.name in program.state:
            return coupling.parameter_axes[program.state[node.name]]
        outcome = coupling.outcomes.get(node)
        return outcome.outputs[0] if outcome is not None else (None,) * len(output_shapes(node)[0])

    def _form(self, axis: Axis) -> LinearForm:
        if axis is None:
            return (1, ())
        constant, coefficients = self._graph.coupling.count(axis)
        return constant, tuple(sorted(coefficients.items()))

    def _sized(self, node: Node, dim: int) -> LinearForm:
        axis = self._axes(node)[dim]
        return (output_shapes(node)[0][dim], ()) if axis is None else self._form(axis)

    @staticmethod
    def _value(form: LinearForm, prediction: Prediction) -> int:
        return form[0] + sum(coefficient * int(prediction.kept[group].sum()) for group, coefficient in form[1])

    def block(self, node: Node) -> str:
        """Return the innermost block that a node lies in."""
        owner = self._graph.program.owners[node.name]
        inside = [block for block in self._blocks if is_inside(owner, block)]
        return max(inside, key=len, default="")


def _kept(graph: ModelGraph, share: float) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Masks that keep about this share of every group."""
    masks = []
    for group in graph.prunable:
        counts = lattice(group)
        count = int(counts[np.abs(counts - share * group.atoms).argmin()])
        masks.append(np.arange(group.atoms) < count)
    return masks


def _argument_names(node: Node) -> list[str]:
    return [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]  # a call of an op has a schema
