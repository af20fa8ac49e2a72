"""Attributes that must follow the cut: head counts, inner widths, split sizes, widths that only an assertion reads.

The verification names the module in which the pruned forward first differs from the prediction. Its integer attributes that equal an
old size (or a whole multiple or fraction of one) are tried with the new size; a change is taken when the forward then agrees further.
What worked in one module is carried over to the others of its class. Nothing is guessed that the forward does not confirm.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.surgery.layer_sizes import PrunedLayer, changed_attributes
from proxyprune.surgery.perform import get_attribute, set_attribute
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import AttributeChange
from proxyprune.surgery.verify_dry import Difference, Recording, compare, extra_ops, record_actual, record_predicted
from proxyprune.tracing.model_call import Call
from proxyprune.tracing.nodes import arguments, output_shapes
from proxyprune.tracing.skeleton import Ghost

_SINGLES_TRIED = 20
_PAIRS_TRIED = 6
_ROUNDS = 400

Path = tuple[str, ...]
Value = int | tuple[int, ...]
Scales = dict[int, dict[int, None]]


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
        predicted, channels = _predicted_arguments(calls[name], prediction) if name in calls else ({}, None)
        yield from changed_attributes(name, PrunedLayer(module, shapes, predicted, channels))


def _predicted_arguments(node: Node, prediction: Prediction) -> tuple[dict[str, Any], int | None]:
    if not hasattr(node.target, "_schema"):
        return {}, None
    names = [argument.name for argument in node.target._schema.arguments]
    values = {}
    for key, size in prediction.coupling.outcomes[node].sizes.items():
        name = names[key] if isinstance(key, int) else key
        values[name] = [prediction.size(item) for item in size] if isinstance(size, tuple) else prediction.size(size)
    shape = prediction.output_shape(node) if output_shapes(node)[0] else ()
    return values, shape[1] if len(shape) > 1 else None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A new value for an attribute, and where it came from: the how-manieth suggestion for this attribute at which op of the module."""

    module: str
    path: Path
    after: Value
    op: int | None = None
    rank: int = 0


@dataclass
class Follower:
    """Finds the attribute changes that make a pruned skeleton's forward agree with the prediction."""

    prediction: Prediction
    skeleton: nn.Module
    example_inputs: Call
    ghost: Ghost
    extra: frozenset[int] = frozenset()
    search: bool = True
    before: dict[tuple[str, Path], Value] = field(default_factory=dict)
    learned: dict[tuple[type[nn.Module], Path], None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.skeleton.named_modules())
        self._ops_of: dict[str, list[Node]] = {}
        if self.search:
            for proposal in self.obvious():
                self._set(proposal)

    @cached_property
    def predicted(self) -> Recording:
        """The ops that the pruned forward must run."""
        return record_predicted(self.prediction, self.ghost)

    @property
    def changes(self) -> tuple[AttributeChange, ...]:
        """The attribute changes that were found, in module order."""
        found = []
        for (module, path), before in self.before.items():
            after = _plain(get_attribute(self.modules[module], path))
            if after != before:
                found.append(AttributeChange(module, path, before, after))
        order = {name: index for index, name in enumerate(self.modules)}
        return tuple(sorted(found, key=lambda change: (order[change.module], change.path)))

    def run(self) -> Difference | None:
        """Try changes until the forward agrees; returns the difference that is left, if any."""
        difference = self._difference()
        for _ in range(_ROUNDS):
            if difference is None or self.predicted.error is not None:
                return difference
            better = self._improve(difference)
            if better is difference:
                return difference
            difference = better
        return difference

    def obvious(self) -> list[Proposal]:
        """Attributes that equal an old size argument of one of their module's own ops, where only one new size is to be had.

        This saves a run for each class of modules; should it be wrong, the forward will say so and the attribute is tried again.
        """
        outcomes, owners = self.prediction.coupling.outcomes, self.prediction.graph.program.owners
        own: dict[str, list[Node]] = {}
        for node in self.prediction.graph.program.calls:
            if outcomes[node].sizes and not self.prediction.is_removed(node):
                own.setdefault(owners[node.name], []).append(node)
        found: dict[tuple[str, Path], Proposal] = {}
        for module, nodes in own.items():
            scales: Scales = {}
            for node in nodes:
                for key, size in outcomes[node].sizes.items():
                    self._add_argument_scales(node, key, size, scales, changed_only=False)
            clear = {old: news for old, news in scales.items() if len(news) == 1 and old not in news}
            for proposal in self._suggested(module, clear, None):
                value = get_attribute(self.modules[module], proposal.path)
                if isinstance(value, int) and value in clear:
                    found.setdefault((module, proposal.path), proposal)
        return list(found.values())

    def read_widths(self) -> Iterator[Proposal]:
        """Attributes that a module's forward names and that equal an old width of what goes into it, as an assertion reads them."""
        owners, outcomes = self.prediction.graph.program.owners, self.prediction.coupling.outcomes
        for name, module in self.modules.items():
            code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
            if not name or code is None or type(module).__module__.startswith("torch."):
                continue
            widths = [(path, value) for path, value in _integer_attributes(module) if path[0] in code.co_names and isinstance(value, int)]
            if not widths:
                continue
            ops = self._ops(name)
            inside = set(ops)
            sources = dict.fromkeys(
                source for node in ops for source in node.all_input_nodes if source not in inside and source in outcomes
            )
            sizes: Scales = {}
            for source in sources:
                for before, after in zip(output_shapes(source)[0], self.prediction.output_shape(source), strict=True):
                    sizes.setdefault(before, {})[after] = None
            for path, value in widths:
                news = list(sizes.get(value, {}))
                if len(news) == 1 and news[0] != value and not any(owners[node.name] == name and outcomes[node].sizes for node in ops):
                    yield Proposal(name, path, news[0])

    def _difference(self) -> Difference | None:
        return compare(
            self.predicted, record_actual(self.skeleton, self.example_inputs, self.ghost, self.predicted, self.extra), self.extra
        )

    def _improve(self, difference: Difference) -> Difference | None:
        candidates = list(itertools.islice(dict.fromkeys(self._candidates(difference)), _SINGLES_TRIED))
        singles: list[tuple[Proposal, ...]] = [(candidate,) for candidate in candidates]
        pairs = itertools.islice(itertools.combinations(candidates, 2), _PAIRS_TRIED)
        for trial in itertools.chain(singles, pairs):
            if len({(proposal.module, proposal.path) for proposal in trial}) < len(trial):
                continue
            everywhere = [*trial, *(other for proposal in trial for other in self._carried_over(proposal))]
            before = [self._set(proposal) for proposal in everywhere]
            found = self._difference()
            if found is None or found.progress > difference.progress:
                self.learned.update({(type(self.modules[proposal.module]), proposal.path): None for proposal in trial})
                return found
            for proposal, value in reversed(list(zip(everywhere, before, strict=True))):
                set_attribute(self.modules[proposal.module], proposal.path, value)
        return difference

    def _set(self, proposal: Proposal) -> Value:
        """Carry out a proposal; returns the value that it replaces."""
        current = _plain(get_attribute(self.modules[proposal.module], proposal.path))
        self.before.setdefault((proposal.module, proposal.path), current)
        set_attribute(self.modules[proposal.module], proposal.path, proposal.after)
        return current

    def _carried_over(self, proposal: Proposal) -> Iterator[Proposal]:
        """What the same op suggests for the same attribute in the other modules of the class."""
        kind = type(self.modules[proposal.module])
        if proposal.op is None or (kind, proposal.path) in self.learned:
            return
        for name, module in self.modules.items():
            ops = self._ops(name) if type(module) is kind and name != proposal.module else []
            if (name, proposal.path) in self.before or proposal.op >= len(ops):
                continue
            same = [other for other in self._proposals(name, ops[proposal.op], proposal.op) if other.path == proposal.path]
            if proposal.rank < len(same):
                yield same[proposal.rank]

    def _candidates(self, difference: Difference) -> Iterator[Proposal]:
        """Proposals for the module of a difference, its ancestors and its descendants: what the op itself suggests comes first."""
        places = [difference.module]
        if difference.node is not None:
            places.append(self.prediction.graph.program.owners[difference.node.name])
        holders = list(dict.fromkeys(holder for place in places for holder in self._around(place)))
        for holder in holders:
            ops = self._ops(holder)
            if difference.node in ops:
                index = ops.index(difference.node)
                yield from self._proposals(holder, ops[index], index)
            elif difference.node is not None:
                yield from self._proposals(holder, difference.node, None)
        for place in places:
            scales = self._scales(place)
            for holder in holders:
                yield from self._suggested(holder, scales, None)

    def _around(self, place: str) -> Iterator[str]:
        yield place
        parent = place
        while parent:
            parent = parent.rpartition(".")[0]
            yield parent
        yield from (name for name in self.modules if name != place and (not place or name.startswith(f"{place}.")))

    def _ops(self, module: str) -> list[Node]:
        """The ops of a module, those of its submodules included."""
        if module not in self._ops_of:
            program = self.prediction.graph.program
            inside = f"{module}."
            self._ops_of[module] = [
                node
                for node in program.calls
                if not module or program.owners[node.name] == module or program.owners[node.name].startswith(inside)
            ]
        return self._ops_of[module]

    def _proposals(self, holder: str, node: Node, op: int | None) -> Iterator[Proposal]:
        scales: Scales = {}
        self._add_scales([node], scales)
        yield from self._suggested(holder, scales, op)

    def _suggested(self, holder: str, scales: Scales, op: int | None) -> Iterator[Proposal]:
        module = self.modules.get(holder)
        if module is None or (type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention)):
            return
        for path, current in _integer_attributes(module):
            value = self.before.get((holder, path), current)
            for rank, after in enumerate(_suggestions(value, scales)):
                if after != current:
                    yield Proposal(holder, path, after, op, rank)

    def _scales(self, place: str) -> Scales:
        """Old size -> new sizes, from the ops of a module and what goes into them; its own ops first."""
        owners = self.prediction.graph.program.owners
        found: Scales = {}
        ops = self._ops(place)
        self._add_scales([node for node in ops if owners[node.name] == place], found)
        self._add_scales([node for node in ops if owners[node.name] != place], found)
        return found

    def _add_scales(self, nodes: list[Node], found: Scales) -> None:
        outcomes = self.prediction.coupling.outcomes
        for node in nodes:
            for key, size in outcomes[node].sizes.items():
                self._add_argument_scales(node, key, size, found)
        for near in dict.fromkeys([*nodes, *(source for node in nodes for source in node.all_input_nodes)]):
            if near in outcomes and not self.prediction.is_removed(near):
                self._add_shape_scales(near, found)

    def _add_shape_scales(self, node: Node, found: Scales) -> None:
        for index, shape in enumerate(output_shapes(node)):
            if shape:
                for before, after in zip(shape, self.prediction.output_shape(node, index), strict=True):
                    if before != after:
                        found.setdefault(before, {})[after] = None

    def _add_argument_scales(self, node: Node, key: int | str, size: Any, found: Scales, *, changed_only: bool = True) -> None:
        before = node.args[key] if isinstance(key, int) else arguments(node).get(key)
        befores = before if isinstance(before, list | tuple) else [before]
        afters = [self.prediction.size(item) for item in (size if isinstance(size, tuple) else (size,))]
        for old, new in zip(befores, afters, strict=False):
            if isinstance(old, int) and old > 0 and (old != new or not changed_only):
                found.setdefault(old, {})[new] = None


def _plain(value: Any) -> Value:
    return tuple(value) if isinstance(value, list | tuple) else int(value)


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


def _suggestions(value: Value, scales: Scales) -> Iterator[Value]:
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


def obvious_changes(model: nn.Module, prediction: Prediction) -> tuple[AttributeChange, ...]:
    """Attribute changes that need no search; the forward has yet to confirm them. The model is only read."""
    follower = Follower(prediction, model, (), Ghost.meta(), search=False)
    chosen = {(proposal.module, proposal.path): proposal.after for proposal in (*follower.read_widths(), *follower.obvious())}
    order = {name: index for index, name in enumerate(follower.modules)}
    return tuple(
        AttributeChange(module, path, _plain(get_attribute(follower.modules[module], path)), after)
        for (module, path), after in sorted(chosen.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    )


def confirm(model_skeleton: nn.Module, prediction: Prediction, example_inputs: Call, ghost: Ghost) -> frozenset[int] | None:
    """Line the traced graph up with the unpruned forward, and run the prediction; see `verify.extra_ops`."""
    traced = record_predicted(prediction.unpruned, ghost)
    if traced.error is not None:
        return None
    return extra_ops(traced, record_actual(model_skeleton, example_inputs, ghost))


__all__ = ["Follower", "confirm", "get_attribute", "layer_attributes", "obvious_changes"]
