"""Attributes that must follow the cut: head counts, inner widths, split sizes, widths that only an assertion reads.

The verification names the module in which the pruned forward first differs from the prediction. Its integer attributes that equal an
old size (or a whole multiple or fraction of one) are tried with the new size; a change is taken when the forward then agrees further.
What worked in one module is carried over to the others of its class. Nothing is guessed that the forward does not confirm.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.layers import PrunedLayer, changed_attributes
from proxyprune.predict import Prediction
from proxyprune.rules import output_shapes
from proxyprune.rules.base import arguments
from proxyprune.skeleton import Ghost
from proxyprune.surgery import AttributeChange, get_attribute, set_attribute
from proxyprune.trace import ExampleInputs
from proxyprune.verify import Difference, Recording, compare, extra_ops, record_actual, record_predicted

_PAIRS_TRIED = 24
_ROUNDS = 400

Path = tuple[str, ...]
Value = int | tuple[int, ...]


def layer_attributes(model: nn.Module, prediction: Prediction) -> Iterator[AttributeChange]:
    """Size attributes of torch.nn layers, from the predicted shapes."""
    program = prediction.graph.program
    calls: dict[str, Node] = {}
    for node in program.calls:
        calls.setdefault(program.owners[node.name], node)
    for name, module in model.named_modules():
        if any(name == block or name.startswith(f"{block}.") for block in prediction.removed):
            continue
        shapes = {}
        for local, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            full = f"{name}.{local}" if name else local
            full = program.aliases.get(full, full)
            if isinstance(tensor, Tensor) and full in program.shapes:
                shapes[local] = prediction.shape(full)
        node = calls.get(name)
        predicted, channels = _predicted_arguments(node, prediction) if node is not None else ({}, None)
        yield from changed_attributes(name, PrunedLayer(module, shapes, predicted, channels))


def _predicted_arguments(node: Node, prediction: Prediction) -> tuple[dict[str, Any], int | None]:
    if not hasattr(node.target, "_schema"):
        return {}, None
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    values = {}
    for key, size in prediction.coupling.outcomes[node].sizes.items():
        name = names[key] if isinstance(key, int) else key
        values[name] = [prediction.size(item) for item in size] if isinstance(size, tuple) else prediction.size(size)
    shape = prediction.output_shape(node) if output_shapes(node)[0] else ()
    return values, shape[1] if len(shape) > 1 else None


@dataclass
class Follower:
    """Finds the attribute changes that make a pruned skeleton's forward agree with the prediction."""

    prediction: Prediction
    skeleton: nn.Module
    example_inputs: ExampleInputs
    ghost: Ghost
    extra: frozenset[int] = frozenset()
    changes: dict[tuple[str, Path], AttributeChange] = field(default_factory=dict)
    learned: dict[tuple[type[nn.Module], Path], None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.skeleton.named_modules())
        self.predicted: Recording = record_predicted(self.prediction, self.ghost)
        self._scales_of: dict[str, dict[int, dict[int, None]]] = {}

    def run(self) -> Difference | None:
        """Try changes until the forward agrees; returns the difference that is left, if any."""
        difference = self._difference()
        for _ in range(_ROUNDS):
            if difference is None:
                return None
            better = self._improve(difference)
            if better is difference:
                return difference
            difference = better
        return difference

    def _difference(self) -> Difference | None:
        return compare(self.predicted, record_actual(self.skeleton, self.example_inputs, self.ghost), self.extra)

    def _improve(self, difference: Difference) -> Difference | None:
        candidates = list(dict.fromkeys(self._candidates(difference)))
        singles: list[tuple[AttributeChange, ...]] = [(candidate,) for candidate in candidates]
        pairs = itertools.islice(itertools.combinations(candidates, 2), _PAIRS_TRIED)
        for trial in itertools.chain(singles, pairs):
            if len({(change.module, change.path) for change in trial}) < len(trial):
                continue
            self._set(trial, after=True)
            found = self._difference()
            if found is None or found.progress > difference.progress:
                for change in trial:
                    self.changes[change.module, change.path] = change
                    self._carry_over(change)
                return self._difference() if len(self.learned) and found is not None else found
            self._set(trial, after=False)
        return difference

    def _set(self, trial: tuple[AttributeChange, ...], *, after: bool) -> None:
        for change in trial:
            set_attribute(self.modules[change.module], change.path, change.after if after else change.before)

    def _carry_over(self, change: AttributeChange) -> None:
        """Give the other modules of the class the same attribute's new value, where their own sizes name exactly one."""
        kind = type(self.modules[change.module])
        if (kind, change.path) in self.learned:
            return
        self.learned[kind, change.path] = None
        for name, module in self.modules.items():
            if type(module) is kind and (name, change.path) not in self.changes:
                proposals = [c for c in self._changes_in(name, name) if c.path == change.path]
                if proposals:
                    self._set(proposals[:1], after=True)  # type: ignore[arg-type]
                    self.changes[name, change.path] = proposals[0]

    def _candidates(self, difference: Difference) -> Iterator[AttributeChange]:
        owner = difference.module
        places = [owner]
        if difference.node is not None:
            places.append(self.prediction.graph.program.owners[difference.node.name])
        for place in dict.fromkeys(places):
            yield from self._changes_in(place, place)
            parent = place
            while parent:
                parent = parent.rpartition(".")[0]
                yield from self._changes_in(parent, place)
            for name in self.modules:
                if place and name.startswith(f"{place}."):
                    yield from self._changes_in(name, place)

    def _changes_in(self, holder: str, place: str) -> Iterator[AttributeChange]:
        """Attributes of module `holder` with the new values that the size changes at module `place` suggest."""
        module = self.modules.get(holder)
        if module is None or type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention):
            return
        scales = self._scales(place)
        for path, value in _integer_attributes(module):
            current = (holder, path)
            if current in self.changes:
                continue
            for after in _suggestions(value, scales):
                yield AttributeChange(holder, path, value, after)

    def _scales(self, place: str) -> dict[int, dict[int, None]]:
        """Old size -> new sizes, from the ops of a module and what goes into them; its own ops first."""
        if place in self._scales_of:
            return self._scales_of[place]
        program, outcomes = self.prediction.graph.program, self.prediction.coupling.outcomes
        own, inner = [], []
        for node in program.calls:
            owner = program.owners[node.name]
            if owner == place:
                own.append(node)
            elif not place or owner.startswith(f"{place}."):
                inner.append(node)
        found: dict[int, dict[int, None]] = {}
        for node in [*own, *inner]:
            for source in [node, *node.all_input_nodes]:
                if source in outcomes and not self.prediction.is_removed(source):
                    for index, shape in enumerate(output_shapes(source)):
                        if shape:
                            for before, after in zip(shape, self.prediction.output_shape(source, index), strict=True):
                                if before != after:
                                    found.setdefault(before, {})[after] = None
            for key, size in outcomes[node].sizes.items():
                self._add_argument_scales(node, key, size, found)
        self._scales_of[place] = found
        return found

    def _add_argument_scales(self, node: Node, key: int | str, size: Any, found: dict[int, dict[int, None]]) -> None:
        before = node.args[key] if isinstance(key, int) else arguments(node).get(key)
        befores = before if isinstance(before, list | tuple) else [before]
        afters = [self.prediction.size(item) for item in (size if isinstance(size, tuple) else (size,))]
        for old, new in zip(befores, afters, strict=False):
            if isinstance(old, int) and old > 0 and old != new:
                found.setdefault(old, {})[new] = None


def _integer_attributes(module: nn.Module) -> Iterator[tuple[Path, Value]]:
    """Integers and integer sequences that a module, or a plain object it holds (a config, a processor), carries."""
    for name, value in vars(module).items():
        if name.startswith("_") and name not in ("_num_heads", "_heads"):
            continue
        if _is_sizes(value):
            yield (name,), tuple(value) if isinstance(value, list | tuple) else value
        elif _is_plain_object(value):
            for inner, item in vars(value).items():
                if _is_sizes(item) and not inner.startswith("__"):
                    yield (name, inner), tuple(item) if isinstance(item, list | tuple) else item


def _is_sizes(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= 16 and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _is_plain_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type) and not callable(value)


def _suggestions(value: Value, scales: dict[int, dict[int, None]]) -> Iterator[Value]:
    """New values for an attribute: an old size becomes the new one; a multiple or fraction of it scales along."""
    if isinstance(value, tuple):
        options = [[item, *scales.get(item, {})][-1] for item in value]
        if tuple(options) != value:
            yield tuple(options)
        return
    yield from scales.get(value, {})
    for old, news in scales.items():
        for new in news:
            if old != value and old % value == 0 and new % (old // value) == 0:
                yield new // (old // value)
            elif old != value and value % old == 0:
                yield new * (value // old)


def confirm(model_skeleton: nn.Module, unpruned: Prediction, example_inputs: ExampleInputs, ghost: Ghost) -> frozenset[int] | None:
    """Line the traced graph up with the unpruned forward; see `verify.extra_ops`."""
    return extra_ops(record_predicted(unpruned, ghost), record_actual(model_skeleton, example_inputs, ghost))


__all__ = ["Follower", "confirm", "get_attribute", "layer_attributes"]
