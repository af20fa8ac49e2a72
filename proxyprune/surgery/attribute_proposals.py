"""Read which attributes of a model may state a size that changed, and which values they may get.

Proposals are guesses from equal numbers: an integer attribute that equals an old size, or a whole multiple or fraction of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.surgery.perform import stored_value
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import AttributeChange
from proxyprune.tracing.nodes import arguments, output_shapes

Path = tuple[str, ...]
Value = int | tuple[int, ...]
Scales = dict[int, dict[int, None]]
"""Old size -> the new sizes that it has somewhere, in the order in which they were found."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A new value for an attribute.

    Attributes:
        module: Qualified name.
        path: Attribute names from the module inwards.
        after: The proposed value.
        op: Index, among the module's ops, of the op that the value comes from; None if it comes from several.
        rank: Index of the value among those that this op yields for this attribute.
    """

    module: str
    path: Path
    after: Value
    op: int | None = None
    rank: int = 0


class AttributeProposals:
    """Proposals for the attributes of an unpruned model, from the sizes of a prediction. The model is only read."""

    def __init__(self, prediction: Prediction, model: nn.Module) -> None:
        self.prediction = prediction
        self.modules = dict(model.named_modules())
        self._owners: Mapping[str, str] = prediction.graph.program.owners

    def value(self, module: str, path: Path) -> Value:
        """Return an attribute's value in the unpruned model."""
        return plain(get_attribute(self.modules[module], path))

    def change(self, proposal: Proposal) -> AttributeChange:
        """Return a proposal as a change of the unpruned model."""
        return AttributeChange(proposal.module, proposal.path, self.value(proposal.module, proposal.path), proposal.after)

    def ordered(self, changes: Iterator[AttributeChange]) -> tuple[AttributeChange, ...]:
        """Sort changes by module, in the model's order, and by path."""
        order = {name: index for index, name in enumerate(self.modules)}
        return tuple(sorted(changes, key=lambda change: (order[change.module], change.path)))

    def own_arguments(self) -> list[Proposal]:
        """Propose for attributes that equal an old size argument of one of their module's own ops, if only one new size is possible.

        Equal numbers are no evidence; `AttributeEvidence` decides which of these the forward uses.
        """
        own: dict[str, list[Node]] = {}
        for node in self.prediction.graph.program.calls:
            if self.prediction.coupling.outcomes[node].sizes and not self.prediction.is_removed(node):
                own.setdefault(self._owners[node.name], []).append(node)
        found: dict[tuple[str, Path], Proposal] = {}
        for module, nodes in own.items():
            scales: Scales = {}
            for node in nodes:
                self._add_argument_scales(node, scales, changed_only=False)
            clear = {old: news for old, news in scales.items() if len(news) == 1 and old not in news}
            for proposal in self._suggested(module, clear, None):
                value = get_attribute(self.modules[module], proposal.path)
                if isinstance(value, int) and value in clear:
                    found.setdefault((module, proposal.path), proposal)
        return list(found.values())

    def read_widths(self) -> Iterator[Proposal]:
        """Propose for attributes that a module's forward names and that equal an old width of its input, as assertions read them."""
        for name, module in self.modules.items():
            code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
            if not name or code is None or type(module).__module__.startswith("torch."):
                continue
            widths = [(path, value) for path, value in integer_attributes(module) if path[0] in code.co_names and isinstance(value, int)]
            if not widths or any(self._owners[node.name] == name and self._has_sizes(node) for node in self.ops(name)):
                continue
            sizes = self._input_sizes(name)
            for path, value in widths:
                news = list(sizes.get(value, {}))
                if len(news) == 1 and news[0] != value:
                    yield Proposal(name, path, news[0])

    def changed_around(self) -> Iterator[tuple[AttributeChange, tuple[int, ...]]]:
        """Yield a module's own integers that equal a size which changed in the module or in a child, with that size's new values."""
        around: dict[str, Scales] = {}
        for node in self.prediction.graph.program.calls:
            owner = self._owners[node.name]
            if not self.prediction.is_removed_module(owner):
                for name in dict.fromkeys((owner, owner.rpartition(".")[0])):
                    self._add_argument_scales(node, around.setdefault(name, {}), changed_only=True)
                    self._add_shape_scales(node, around[name])
        for cut in self.prediction.cuts:  # a width that a module only reads is the size of no result in it
            for parameter in self._names_of(cut.parameter):
                owner = parameter.rpartition(".")[0]
                for name in dict.fromkeys((owner, owner.rpartition(".")[0])):
                    around.setdefault(name, {}).setdefault(cut.size, {})[len(cut.kept)] = None
        for name, module in self.modules.items():
            scales = around.get(name, {})
            if type(module).__module__.startswith("torch.nn.modules") or not scales:
                continue
            for path, value in integer_attributes(module):
                if len(path) == 1 and isinstance(value, int) and value in scales:
                    news = tuple(scales[value])
                    yield AttributeChange(name, path, value, news[0]), news

    def at_op(self, holder: str, node: Node, op: int | None) -> Iterator[Proposal]:
        """Propose for a module's attributes from the sizes at one op."""
        scales: Scales = {}
        self._add_scales([node], scales)
        yield from self._suggested(holder, scales, op)

    def near(self, place: str, holders: list[str]) -> Iterator[Proposal]:
        """Propose for the attributes of some modules from all sizes inside one module."""
        scales = self._scales(place)
        for holder in holders:
            yield from self._suggested(holder, scales, None)

    def ops(self, module: str) -> Sequence[Node]:
        """List the ops of a module, including those of its submodules."""
        return self.prediction.graph.program.calls_by_module.get(module, ())

    def _names_of(self, parameter: str) -> Iterator[str]:
        """Yield all names of a parameter that modules may share."""
        yield parameter
        yield from (alias for alias, name in self.prediction.graph.program.aliases.items() if name == parameter and alias != parameter)

    def _has_sizes(self, node: Node) -> bool:
        return bool(self.prediction.coupling.outcomes[node].sizes)

    def _input_sizes(self, module: str) -> Scales:
        """Old sizes of the tensors that a module reads from outside, with their new sizes."""
        ops = self.ops(module)
        inside = set(ops)
        sources = dict.fromkeys(source for node in ops for source in node.all_input_nodes if source not in inside)
        sizes: Scales = {}
        for source in sources:
            if source in self.prediction.coupling.outcomes:
                for before, after in zip(output_shapes(source)[0], self.prediction.output_shape(source), strict=True):
                    sizes.setdefault(before, {})[after] = None
        return sizes

    def _suggested(self, holder: str, scales: Scales, op: int | None) -> Iterator[Proposal]:
        module = self.modules.get(holder)
        if module is None or (type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention)):
            return
        for path, value in integer_attributes(module):
            for rank, after in enumerate(_suggestions(value, scales)):
                yield Proposal(holder, path, after, op, rank)

    def _scales(self, place: str) -> Scales:
        """Sizes at the ops of a module and of what they read; its own ops come before those of its submodules."""
        found: Scales = {}
        ops = self.ops(place)
        self._add_scales([node for node in ops if self._owners[node.name] == place], found)
        self._add_scales([node for node in ops if self._owners[node.name] != place], found)
        return found

    def _add_scales(self, nodes: list[Node], found: Scales) -> None:
        for node in nodes:
            self._add_argument_scales(node, found, changed_only=True)
        for near in dict.fromkeys([*nodes, *(source for node in nodes for source in node.all_input_nodes)]):
            if near in self.prediction.coupling.outcomes and not self.prediction.is_removed(near):
                self._add_shape_scales(near, found)

    def _add_shape_scales(self, node: Node, found: Scales) -> None:
        for index, shape in enumerate(output_shapes(node)):
            if shape:
                for before, after in zip(shape, self.prediction.output_shape(node, index), strict=True):
                    if before != after:
                        found.setdefault(before, {})[after] = None

    def _add_argument_scales(self, node: Node, found: Scales, *, changed_only: bool) -> None:
        for key, size in self.prediction.coupling.outcomes[node].sizes.items():
            before = node.args[key] if isinstance(key, int) else arguments(node).get(key)
            befores = before if isinstance(before, list | tuple) else [before]
            afters = [self.prediction.size(item) for item in (size if isinstance(size, tuple) else (size,))]
            for old, new in zip(befores, afters, strict=False):
                if isinstance(old, int) and old > 0 and (old != new or not changed_only):
                    found.setdefault(old, {})[new] = None


def get_attribute(module: nn.Module, path: Path) -> Any:
    """Return the value at an attribute path, as it is stored."""
    value: Any = module
    for part in path:
        value = value[part] if isinstance(value, dict) else stored_value(value, part)
    return value


def plain(value: Any) -> Value:
    """Return an integer, or a sequence of them as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else int(value)


def integer_attributes(module: nn.Module) -> Iterator[tuple[Path, Value]]:
    """List integers and integer sequences that a module holds, or a plain object that it holds (a config, a processor)."""
    for name, value in vars(module).items():
        if name.startswith("_") and name not in ("_num_heads", "_heads"):
            continue
        if _is_sizes(value):
            yield (name,), plain(value)
        elif _is_plain_object(value):
            for inner, item in vars(value).items():
                if _is_sizes(item) and not inner.startswith("__"):
                    yield (name, inner), plain(item)


def plain_objects(module: nn.Module) -> Iterator[Any]:
    """List the objects whose integers `integer_attributes` lists."""
    return (value for name, value in vars(module).items() if not name.startswith("_") and not _is_sizes(value) and _is_plain_object(value))


def forward_settings(model: nn.Module) -> tuple[Any, ...]:
    """Return what a forward may branch on: modes, numbers, flags and texts of all modules, and of plain objects that they hold."""
    found: list[Any] = []
    for name, module in model.named_modules():
        found.append((name, type(module), module.training, *_settings(vars(module))))
        found += [(name, *_settings(vars(holder))) for holder in plain_objects(module)]
    return tuple(found)


def _settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if value is None or isinstance(value, bool | int | float | str):
            yield name, value
        elif isinstance(value, list | tuple) and all(item is None or isinstance(item, bool | int | float | str) for item in value):
            yield name, tuple(value)


def _is_sizes(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= 16 and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _is_plain_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type) and not callable(value)


def _suggestions(value: Value, scales: Scales) -> Iterator[Value]:
    """Yield new values for an attribute: an old size becomes the new one; a multiple or fraction of it scales with it."""
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
