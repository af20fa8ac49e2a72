"""Decide whether a forward uses an attribute as a size, by changing the attribute alone.

That an attribute equals an old size proves nothing: the layer with index 9 of a network with 9 heads is an example. One run without
data, on an unpruned skeleton, shows which attributes are read. Each of these is changed alone, and the forward is run again. The attribute
is a size if an integer argument or the shape of a result changes by the same factor at some op, or if the forward itself rejects the new
value, as an assertion does.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from torch import Tensor, nn

from proxyprune.graph.build import calls_of
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.surgery.attribute_proposals import Path, forward_settings, plain_objects
from proxyprune.surgery.attribute_reads import ReadsInside, reads_of
from proxyprune.surgery.comparison import FREE_ARGUMENTS, PredictedCall, is_bookkeeping, is_extra_constant, named_arguments
from proxyprune.surgery.perform import set_attribute, stored_value
from proxyprune.surgery.surgery import AttributeChange
from proxyprune.surgery.unpruned_runs import UnprunedRuns
from proxyprune.tracing.dispatch import RunAborted, WholeOps
from proxyprune.tracing.model_call import Call, ExampleInputs, failing_module
from proxyprune.tracing.skeleton import skeleton


class Use(Enum):
    """The use that a forward makes of an attribute."""

    SIZE = "an argument or a shape of an op changes with it"
    CHECK = "the forward raises when it has another value"
    NONE = "it is not used as a size, or this cannot be found out"


_Key = tuple[type[nn.Module], Path]
"""Class of a module, and an attribute path."""

_EVERYTHING = ReadsInside(everything=True)


class AttributeEvidence:
    """Evidence about the attributes of one unpruned model. An attribute is tried in one module of each class.

    It depends on the model and the example call alone, so it serves all probes and plans of a model.

    Args:
        model: The unpruned model; it is not changed.
        graph: A trace of it.
        example_inputs: What it was traced on.

    Attributes:
        runs: The runs that it rests on.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, example_inputs: Call) -> None:
        self.runs = UnprunedRuns(model, graph, example_inputs)
        self._known: dict[_Key, Use] = {}
        self._inside: dict[int, ReadsInside] = {}

    def uses(self, changes: Sequence[AttributeChange]) -> dict[AttributeChange, Use]:
        """Return how the forward uses each of the attributes."""
        unknown: dict[_Key, AttributeChange] = {}
        for change in changes:
            if isinstance(self.runs.model.get_submodule(change.module), nn.MultiheadAttention):
                self._known[self._key(change)] = Use.SIZE  # torch documents all of its integers as sizes
            elif self._key(change) not in self._known:
                unknown.setdefault(self._key(change), change)
        self._known.update({key: self._use(change) if self._is_read(change) else Use.NONE for key, change in unknown.items()})
        return {change: self._known[self._key(change)] for change in changes}

    def _key(self, change: AttributeChange) -> _Key:
        return type(self.runs.model.get_submodule(change.module)), change.path

    @functools.cached_property
    def _skeleton(self) -> nn.Module:
        return skeleton(self.runs.model, self.runs.faithful.empty)

    def may_be_read(self, module: str, path: Path) -> bool:
        """Return False if the forward never reads an attribute, so that its value cannot matter."""
        if self._reads is None:
            return True
        return (module, path[0]) in self._reads and (len(path) == 1 or self._may_read_inside(module, path))

    def _may_read_inside(self, module: str, path: Path) -> bool:
        """Return False for an attribute of an object (a config) that no code reads, in any module that holds the object."""
        holder = stored_value(self._skeleton.get_submodule(module), path[0])
        return self._inside.get(id(holder), _EVERYTHING).may_read(path[1])

    def _is_read(self, change: AttributeChange) -> bool:
        return self._reads is not None and (change.module, change.path[0]) in self._reads

    @functools.cached_property
    def _reads(self) -> frozenset[tuple[str, str]] | None:
        """Module and attribute of every read in one run, torch's own layers left out; None if the forward cannot run without data."""
        reads: set[tuple[str, str]] = set()
        modules = {
            name: module
            for name, module in self._skeleton.named_modules()
            if isinstance(module, nn.MultiheadAttention) or not type(module).__module__.startswith("torch.nn.modules")
        }
        classes = {name: type(module) for name, module in modules.items()}
        with contextlib.ExitStack() as stack:
            holders = self._own_holders(modules.values())
            for name, module in modules.items():
                module.__class__ = _recording_reads(classes[name], name, reads)
                stack.callback(setattr, module, "__class__", classes[name])
            self._inside = {id(holder): stack.enter_context(reads_of(holder)) for holder in holders}
            try:
                self.runs.faithful.call(self._skeleton, WholeOps(), self.runs.calls)  # which repeats the ops of earlier runs
            except Exception:  # noqa: BLE001  the forward cannot run without data, so nothing is known about its reads
                return None
        return frozenset(reads)

    def _own_holders(self, modules: Iterable[nn.Module]) -> list[Any]:
        """List the objects with integers that modules of the skeleton hold, without those that the caller's model holds too."""
        shared = {id(holder) for module in self.runs.model.modules() for holder in plain_objects(module)}
        holders = {id(holder): holder for module in modules for holder in plain_objects(module)}
        return [holder for number, holder in holders.items() if number not in shared]

    def _use(self, change: AttributeChange) -> Use:
        """Run the forward with the attribute changed."""
        module, watcher = self._skeleton.get_submodule(change.module), _SizeWatcher(self.runs.calls, change)
        held = getattr(module, change.path[0])
        set_attribute(module, change.path, change.after)
        try:
            self.runs.faithful.call(self._skeleton, watcher, self.runs.calls)
        except RunAborted:
            pass
        except Exception as error:  # noqa: BLE001  the forward rejects the value; where it does so decides
            if not watcher.inside_op and failing_module(self._skeleton, error) == change.module:
                return Use.CHECK
        finally:
            setattr(module, change.path[0], held)
        return Use.SIZE if watcher.found else Use.NONE


def evidence_for(model: nn.Module, graph: ModelGraph, example_inputs: ExampleInputs) -> tuple[AttributeEvidence, ...]:
    """Return the evidence for each example call of a graph, in order.

    It is gathered once for a program, a model with its present settings, and its example inputs (the same objects). Amended graphs and
    further plans share it. It holds the example inputs.
    """
    settings = forward_settings(model)
    known = graph.program.evidence.get(model)
    if known is None or known[0] is not example_inputs or known[1] != settings:
        gathered = tuple(AttributeEvidence(model, view, inputs) for view, inputs in calls_of(graph, example_inputs))
        known = graph.program.evidence[model] = (example_inputs, settings, gathered)
    found: tuple[AttributeEvidence, ...] = known[2]
    return found


def _recording_reads(kind: type[nn.Module], name: str, reads: set[tuple[str, str]]) -> type[nn.Module]:
    """Return a subclass that records which attributes are read. It keeps the name of the class, by which libraries look classes up."""

    def read(self: nn.Module, attribute: str) -> Any:
        reads.add((name, attribute))
        return kind.__getattribute__(self, attribute)

    return type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__, "__qualname__": kind.__qualname__})


class _SizeWatcher(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Look for the first size that follows a changed attribute; end the run there, or when other ops are called than before."""

    def __init__(self, calls: Sequence[PredictedCall], change: AttributeChange) -> None:
        super().__init__()
        self.calls = calls
        self.pairs = [(old, new) for old, new in zip(_values(change.before), _values(change.after), strict=True) if old != new]
        self.found = False
        self.inside_op = False
        self.progress = 0

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compare the sizes of one call with those of the run before."""
        if is_bookkeeping(func):
            return self.run(func, args, kwargs)
        if self.progress == len(self.calls):
            raise RunAborted
        call, called = self.calls[self.progress], func
        if is_extra_constant(call, func):
            return self.run(func, args, kwargs)
        if call.node.target is not called:
            raise RunAborted
        self._look(_moved_arguments(call, named_arguments(func, args, kwargs)))
        self.inside_op = True
        result = self.run(func, args, kwargs)
        self.inside_op = False
        self._look(_moved_sizes(call, result))
        self.progress += 1
        return result

    def _look(self, moved: Iterator[tuple[int, int]]) -> None:
        if any(self._follows(before, after) for before, after in moved):
            self.found = True
            raise RunAborted

    def _follows(self, before: int, after: int) -> bool:
        """Return True if a number changed in proportion to the attribute, or inversely (a width divided by a number of heads)."""
        return any(before * new == after * old or before * old == after * new for old, new in self.pairs)


def _values(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _moved_arguments(call: PredictedCall, found: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for name, before in call.arguments.items():
        if name not in FREE_ARGUMENTS:
            yield from _moved(before, found.get(name))


def _moved_sizes(call: PredictedCall, result: Any) -> Iterator[tuple[int, int]]:
    results = result if isinstance(result, list | tuple) else (result,)
    for before, after in zip(call.shapes or (), results, strict=False):
        if isinstance(after, Tensor):
            yield from _moved(before, tuple(after.shape))


def _moved(before: Any, after: Any) -> Iterator[tuple[int, int]]:
    """Yield integers that differ, in order, with the integers in their place."""
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        for one, other in zip(before, after, strict=False):
            yield from _moved(one, other)
    elif type(before) is int and type(after) is int and before != after:
        yield before, after
