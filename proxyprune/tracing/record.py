"""A lean stand-in for torch.export: run the forward once on empty tensors and write its ops down.

Export does the same at ten times the price, and much else that a trace for pruning has no use for. The recorder gives up, and leaves the
model to export, wherever it is not sure to see what export would: a value that is read, a tensor it does not know, a state that changes.
The tests hold the two programs equal on the whole zoo.
"""

from __future__ import annotations

import contextlib
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node
from torch.utils.weak import WeakTensorKeyDictionary

from proxyprune.support.nested import tensors_of
from proxyprune.tracing.dispatch import ReportedDevice, RunAborted, WholeOps
from proxyprune.tracing.model_call import as_if_exporting, evaluation
from proxyprune.tracing.module_stack import ModuleStack, module_stack
from proxyprune.tracing.names import named_state
from proxyprune.tracing.program import Program, assemble
from proxyprune.tracing.skeleton import EmptyTensors, empty_inputs, skeleton

_VALUE_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_UNSURE = frozenset(f"aten::{name}" for name in "is_nonzero item _local_scalar_dense equal lift_fresh scalar_tensor set_ resize_".split())
"""Ops that read values, and numbers that Python code writes into a tensor, which the two ways of tracing put down as other ops."""

_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
_META = torch.device("meta")


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False) -> Program | None:
    """The program of a model, or None where torch.export has to look.

    Args:
        model: Any module; it is not changed.
        args: Positional arguments, on the model's device.
        kwargs: Named arguments, likewise.
        training: Run in training mode.
    """
    devices = {_home(tensor) for _, tensor in named_state(model)} | {_home(tensor) for tensor in tensors_of((args, kwargs))}
    if len(devices) > 1:
        return None
    device = next(iter(devices), torch.device("cpu"))
    empty = EmptyTensors.meta()
    blank = skeleton(model, empty)
    inputs = empty_inputs((args, kwargs), empty)
    before = _tensors_held(blank)
    try:
        with (
            module_stack(blank) as modules,
            evaluation(blank, training=training),
            as_if_exporting(),
            _without_cudnn(),
            ReportedDevice(device),
        ):
            recording = _Recording.of(blank, inputs, modules)
            with _ProgramRecorder(recording):
                results = list(tensors_of(blank(*inputs[0], **inputs[1])))
        recording.graph.output(tuple(recording.maker(result) for result in results))
    except (RunAborted, Exception):  # noqa: BLE001  whatever went wrong, export says it better
        return None
    if before != _tensors_held(blank):
        return None
    recording.leave_out_unread_detach()
    return assemble(model, recording.graph, recording.placeholders, recording.owners, frozenset(recording.repeated))


def _without_cudnn() -> contextlib.AbstractContextManager[None]:
    """Whether cuDNN may be used is an argument of norms; export answers no."""
    return torch.backends.cudnn.flags(enabled=False)


def _home(tensor: Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _tensors_held(model: nn.Module) -> dict[tuple[str, str], int]:
    """Identity of every tensor that a module holds, whether registered or not."""
    held = {}
    for name, module in model.named_modules():
        for table in (module._parameters, module._buffers, vars(module)):
            held.update({(name, key): id(value) for key, value in table.items() if isinstance(value, Tensor)})
    return held


@dataclass
class _Recording:
    """The graph so far, and which node made a tensor, by the tensor's id; `alive` keeps these tensors, so that no id is used twice.

    `fresh` has tensors that were made of nothing: torch hands out a copy of such a tensor when somebody else holds it.
    """

    modules: ModuleStack
    graph: Graph = field(default_factory=Graph)
    nodes: dict[int, Node] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)
    fresh: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    placeholders: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    @staticmethod
    def of(model: nn.Module, inputs: Any, modules: ModuleStack) -> _Recording:
        """Start a graph with placeholders for parameters, buffers and input tensors."""
        recording = _Recording(modules)
        for name, tensor in named_state(model):
            if id(tensor) not in recording.nodes:
                recording.placeholders[recording._placeholder(name, tensor).name] = name
        for number, tensor in enumerate(tensors_of(inputs)):
            recording._placeholder(f"input_{number}", tensor)
        return recording

    def _placeholder(self, name: str, tensor: Tensor) -> Node:
        node = self.graph.placeholder(name.replace(".", "_"))
        self._made(tensor, node)
        return node

    def _made(self, tensor: Tensor, node: Node) -> None:
        node.meta["val"] = tensor
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One op and what it returned; the elements of several results get a node each."""
        node = self._call(func, args, kwargs)
        if isinstance(result, Tensor) and not node.all_input_nodes:
            node.meta["val"] = torch.empty_like(result)
            self.fresh[result] = node
        elif isinstance(result, Tensor):
            self._made(result, node)
        elif isinstance(result, list | tuple):
            node.meta["val"] = result
            for index, item in enumerate(result):
                element = self._call(operator.getitem, (node, index), {})
                element.meta["val"] = item
                if isinstance(item, Tensor):
                    self._made(item, element)
        elif result is not None:
            raise RunAborted

    def _call(self, func: Any, args: Any, kwargs: Any) -> Node:
        node = self.graph.call_function(func, args, kwargs)
        self.owners[node.name] = self.modules.innermost
        self.repeated.update(name for name in self.modules.names if self.modules.calls[name] > 1)
        return node

    def leave_out_unread_detach(self) -> None:
        """As export does."""
        for node in reversed(self.graph.nodes):
            if node.target is torch.ops.aten.detach.default and not node.users:
                self.graph.erase_node(node)

    def maker(self, tensor: Tensor) -> Node:
        """The node that made a tensor."""
        node = self.nodes.get(id(tensor)) or self.fresh.get(tensor)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if node is None:
            raise RunAborted
        return node

    def argument(self, value: Any) -> Any:
        """A call's argument with nodes for tensors."""
        if isinstance(value, Tensor):
            return self.maker(value)
        if isinstance(value, list | tuple):
            return type(value)(self.argument(item) for item in value)
        return value


class _ProgramRecorder(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    def __init__(self, recording: _Recording) -> None:
        super().__init__()
        self.recording = recording
        self.known: dict[Any, Any] = {}

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Write one op down."""
        if types or func._schema.name in _UNSURE or _depends_on_values(func, args):
            raise RunAborted
        noted = self.recording.argument(args), {key: self.recording.argument(value) for key, value in kwargs.items()}
        result = self._run(func, _on_meta(args), {key: _on_meta(value) for key, value in kwargs.items()})
        self.recording.add(func, *noted, result)
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an op, or make its results anew where the same was run before on tensors of the same layout."""
        schema = func._schema
        if schema.is_mutable or any(returned.alias_info is not None for returned in schema.returns):
            return func(*args, **kwargs)
        if kwargs.get("device") is None and any(argument.name == "device" for argument in schema.arguments) and not _has_tensor(args):
            kwargs = {**kwargs, "device": _META}
        key = (func, _layout(args), _layout(tuple(sorted(kwargs.items()))))
        try:
            layouts = self.known.get(key)
        except TypeError:  # an argument that cannot be a key
            return func(*args, **kwargs)
        if layouts is None:
            result = func(*args, **kwargs)
            if not any(result is tensor for tensor in tensors_of((args, kwargs))):  # an op that has nothing to do hands its argument on
                self.known[key] = _layout(result)
            return result
        return _like(layouts)


def _depends_on_values(func: Any, args: Any) -> bool:
    """Whether a value, or a size that values decide, comes out of an op."""
    if func in _INDEXING:
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_of(args[1]))
    return any(tag in func.tags for tag in _VALUE_TAGS)


def _has_tensor(value: Any) -> bool:
    return next(tensors_of(value), None) is not None


@dataclass(frozen=True, slots=True)
class _Layout:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Layout(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_layout(item) for item in value)
    return type(value), value  # 1, 1.0 and True are one key, and not one argument


def _like(layout: Any) -> Any:
    if isinstance(layout, _Layout):
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=_META)
    if len(layout) == 2 and isinstance(layout[0], type):
        return layout[1]
    return tuple(_like(item) for item in layout)


def _on_meta(value: Any) -> Any:
    """Arguments with every device replaced: what a forward makes, or moves, is empty too."""
    if isinstance(value, torch.device):
        return _META
    if isinstance(value, list | tuple):
        return type(value)(_on_meta(item) for item in value)
    return value
