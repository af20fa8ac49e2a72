"""Gains of weights that are divided by a norm of themselves: gain * direction / norm(direction).

The norm shrinks when inputs leave, and the weights that are kept would grow. A gain that takes the share of the norm that stays
prevents it. torch's weight normalisation is one op. Code that computes the same in other ways (`F.normalize`, a root of a sum of
squares) is recognised by an experiment: the function is evaluated on random numbers, whole and cut, and a gain is scaled if that
makes both agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from proxyprune.surgery.perform import scaled_gain, slice_tensor
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import Cut, Rescaled
from proxyprune.tracing.nodes import arguments, op_name, tensor_argument

_NORMS = frozenset(f"aten.{name}" for name in ("sum", "norm", "linalg_norm", "linalg_vector_norm"))
_SEED = 0
_TOLERANCE = 1e-4


def rescaled_gains(prediction: Prediction) -> tuple[Rescaled, ...]:
    """Return the gains that a cut scales."""
    found = {entry.parameter: entry for entry in _of_torch(prediction)}
    for weight in _normalised_weights(prediction):
        entry = weight.gain()
        if entry is not None:
            found.setdefault(entry.parameter, entry)
    return tuple(found.values())


def _of_torch(prediction: Prediction) -> Iterator[Rescaled]:
    """Yield the gains of torch's weight normalisation whose direction loses entries that its norm counts."""
    for node in prediction.graph.program.calls:
        if op_name(node) == "aten._weight_norm" and not prediction.is_removed(node):
            direction, gain = (prediction.graph.program.state[tensor_argument(node, position).name] for position in (0, 1))
            dim = int(arguments(node)["dim"])
            axes = prediction.coupling.parameter_axes[direction]
            if any(axis is not None and k != dim and prediction.size(axis) != len(axis) for k, axis in enumerate(axes)):
                yield Rescaled(gain, direction, dim)


def _normalised_weights(prediction: Prediction) -> Iterator[_Weight]:
    """Yield the functions of parameters that contain a norm or a sum, and whose result is cut and read by the network."""
    program = prediction.graph.program
    if not any(op_name(node) in _NORMS for node in program.calls):
        return
    made: set[Node] = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in program.state}
    cut = {entry.parameter for entry in prediction.cuts}
    for node in program.calls:
        if node.all_input_nodes and made.issuperset(node.all_input_nodes):
            made.add(node)
    for node in program.calls:
        if node in made and not made.issuperset(node.users) and not prediction.is_removed(node):
            steps = _steps(node)
            leaves = {leaf: program.state[leaf.name] for step in steps for leaf in step.all_input_nodes if leaf.op == "placeholder"}
            if any(op_name(step) in _NORMS for step in steps) and cut.intersection(leaves.values()):
                yield _Weight(prediction, node, steps, leaves)


def _steps(root: Node) -> list[Node]:
    """Return the ops that make a weight, in order."""
    found: dict[Node, None] = {}
    pending = [root]
    while pending:
        node = pending.pop()
        if node not in found:
            found[node] = None
            pending += [source for source in node.all_input_nodes if source.op == "call_function"]
    return [node for node in root.graph.nodes if node in found]


@dataclass(frozen=True)
class _Weight:
    """A function of parameters.

    Attributes:
        prediction: The cut.
        root: The op that returns the weight.
        steps: Its ops, in order.
        leaves: Placeholder -> name of the parameter or buffer.
    """

    prediction: Prediction
    root: Node
    steps: Sequence[Node]
    leaves: Mapping[Node, str]

    def gain(self) -> Rescaled | None:
        """Return the gain that makes the cut weight equal the kept part of the whole one; None if none does, or if none has to."""
        program = self.prediction.graph.program
        trained = [name for name in dict.fromkeys(self.leaves.values()) if name in program.trainable]
        if len(trained) < 2 or program.integers.intersection(self.leaves.values()):
            return None
        generator = torch.Generator().manual_seed(_SEED)
        whole = {name: 0.5 + torch.rand(program.shapes[name], generator=generator, dtype=torch.float64) for name in self.leaves.values()}
        cuts: dict[str, list[Cut]] = {name: [cut for cut in self.prediction.cuts if cut.parameter == name] for name in whole}
        kept = {name: slice_tensor(tensor, cuts[name]) for name, tensor in whole.items()}
        expected = self._kept(self._value(whole, cut=False))
        if expected is None or self._agrees(kept, expected):
            return None
        for gain in sorted(trained, key=lambda name: whole[name].numel()):
            for direction in (name for name in trained if name != gain):
                for dim in range(-1, whole[direction].dim()):
                    scaled = scaled_gain(kept[gain], whole[direction], cuts[direction], dim)
                    if scaled is not None and self._agrees(kept | {gain: scaled}, expected):
                        return Rescaled(gain, direction, dim)
        return None

    def _agrees(self, values: Mapping[str, Tensor], expected: Tensor) -> bool:
        found = self._value(values, cut=True)
        return found is not None and found.shape == expected.shape and torch.allclose(found.double(), expected.double(), rtol=_TOLERANCE)

    def _kept(self, value: Tensor | None) -> Tensor | None:
        """Return the part of a weight that stays."""
        axes = self.prediction.coupling.outcomes[self.root].outputs[0]
        for dim, axis in enumerate(axes):
            if value is not None and axis is not None:
                value = value.index_select(dim, torch.from_numpy(self.prediction.positions(axis)))
        return value

    def _value(self, values: Mapping[str, Tensor], *, cut: bool) -> Tensor | None:
        """Compute the weight; None if an op does not run on these numbers."""
        known: dict[Node, Any] = {leaf: values[name].clone() for leaf, name in self.leaves.items()}
        try:
            for node in self.steps:
                args, kwargs = self.prediction.arguments(node) if cut else (node.args, node.kwargs)
                args, kwargs = map_arg(args, known.__getitem__), map_arg(kwargs, known.__getitem__)
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function node
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):  # a device or a type that these numbers lack
            return None
        found = known[self.root]
        return found if isinstance(found, Tensor) else None
