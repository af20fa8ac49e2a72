"""Read a model once: torch.export turns it into one graph of ATen ops that still knows its modules.

Non-strict export keeps linear, convolution, norms and attention whole and records the owning module of every op. Autograd is off while
tracing, which halves the time, and nn.MultiheadAttention's fused inference kernel is off, because its single op hides the projections.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from proxyprune.errors import ExampleInputsError, InputError, TraceError

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

_PREFIX = "model"


@dataclass(frozen=True, eq=False)
class Program:
    """The ATen program of one model for one set of example inputs.

    Attributes:
        graph: Call nodes in execution order; every tensor node has its fake value in `meta["val"]`.
        state: Placeholder name -> name of the parameter or buffer it stands for.
        shapes: Shape of every parameter and buffer that the forward pass reads or that the state dict holds.
        trainable: Names in `shapes` that are parameters.
        integers: Names in `shapes` that hold integers or flags.
        aliases: Other names of shared parameters -> the name used here.
        owners: Node name -> qualified name of the module whose forward issued the op ("" is the model itself).
        classes: Qualified module name -> class name.
        repeated: Modules whose forward runs more than once.
    """

    graph: Graph = field(repr=False)
    state: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    trainable: frozenset[str]
    integers: frozenset[str]
    aliases: Mapping[str, str]
    owners: Mapping[str, str]
    classes: Mapping[str, str]
    repeated: frozenset[str]

    @property
    def calls(self) -> Iterator[Node]:
        """The ops, in execution order."""
        return (node for node in self.graph.nodes if node.op == "call_function")


class TensorOutputs(nn.Module):
    """A model whose outputs are reduced to the tensors they hold, in a fixed order; what is no tensor is dropped."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Run the model and flatten what it returns."""
        return tuple(tensors_of(self.model(*args, **kwargs)))


def tensors_of(value: Any) -> list[Tensor]:
    """Tensors inside nested tuples, lists, mappings and dataclasses, in order; caches and other objects are passed over."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [tensor for entry in dataclasses.fields(value) for tensor in tensors_of(getattr(value, entry.name))]
    if hasattr(value, "sample") and isinstance(value.sample, Tensor):
        return [value.sample]
    return []


def call_arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Raises:
        InputError: If they are neither a tensor, a tuple or list, nor a mapping with string keys.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        if not all(isinstance(key, str) for key in example_inputs):
            raise InputError("example_inputs is a mapping with keys that are not strings; use the forward's argument names as keys.")
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    raise InputError(
        f"example_inputs must be a tensor, a tuple of arguments, or a dict of named arguments; found {type(example_inputs).__name__}."
    )


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode, no autograd and no fused attention inside; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    for module, _ in modes:
        module.training = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Do not record a Python stack trace for every op, which takes a good part of the time; older versions of torch have no such switch."""
    config: Any = getattr(torch.fx, "config", None)
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is not None:
        config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if before is not None:
            config.do_not_emit_stack_traces = before


def capture(model: nn.Module, example_inputs: ExampleInputs) -> Program:
    """Export a model into a `Program`.

    The model may live on any device, on the meta device, or be built under FakeTensorMode; inputs follow it.

    Args:
        model: Any module; it is not changed.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments. A batch of 1 makes costs per sample.

    Raises:
        ExampleInputsError: If the model itself raises on these inputs.
        TraceError: If the model runs but torch.export cannot follow it; the message names the module and the reason.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a torch.nn.Module to trace, found {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "A TorchScript module holds no Python forward that could be traced and cut. Pass the module that it was made from."
        )
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = on_device_of(model, args), on_device_of(model, kwargs)
    wrapper = TensorOutputs(model)
    wrapper.training = model.training
    with evaluation(wrapper), _without_stack_traces():
        try:
            exported = torch.export.export(wrapper, args, kwargs, strict=False)
        except Exception as error:
            raise _explain(model, args, kwargs, error) from error
    graph_module = exported.graph_module
    _inline_wrapped_regions(graph_module)
    _refuse_data_dependent_sizes(model, graph_module.graph)
    return _program(model, graph_module.graph, exported.graph_signature)


def _refuse_data_dependent_sizes(model: nn.Module, graph: Graph) -> None:
    """Sizes that only the data decide (nonzero, a mask) have no cost and no axis."""
    for node in graph.nodes:
        if node.op == "call_function" and any(isinstance(size, torch.SymInt) for value in _values(node) for size in value.shape):
            module = _owner(node)
            kind = type(model.get_submodule(module)).__name__
            raise TraceError(
                f"The size of the result of {node.target} in module '{module}' ({kind}) depends on the data, "
                "so the network has no one cost. Give inputs that avoid that branch (no mask, no padding), "
                "or trace the part of the model without that module."
            )


def _values(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, Tensor)]


def _program(model: nn.Module, graph: Graph, signature: Any) -> Program:
    names = {id(value): name for name, value in reversed(list(_named_state(model)))}
    aliases = {name: names[id(value)] for name, value in _named_state(model) if names[id(value)] != name}
    state = {}
    for spec in signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            target = spec.target.removeprefix(f"{_PREFIX}.")
            state[spec.arg.name] = aliases.get(target, target)
    shapes = {name: tuple(value.shape) for name, value in _named_state(model) if name not in aliases}
    trainable = frozenset(name for name, _ in model.named_parameters())
    integers = frozenset(name for name, value in _named_state(model) if not (value.is_floating_point() or value.is_complex()))
    owners: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            owners[node.name] = _owner(node)
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    return Program(graph, state, shapes, trainable, integers, aliases, owners, classes, _repeated(graph))


def _named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _owner(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    path = str(path).removeprefix(_PREFIX).removeprefix(".")
    return path.split("@", maxsplit=1)[0]  # export writes "block@1" for the second call of a shared module


def _repeated(graph: Graph) -> frozenset[str]:
    paths = {str(entry[0]) for node in graph.nodes for entry in (node.meta.get("nn_module_stack") or {}).values()}
    return frozenset(path.split("@")[0].removeprefix(f"{_PREFIX}.") for path in paths if "@" in path)


def on_device_of(model: nn.Module, value: Any) -> Any:
    """Move example inputs to where the weights are: a fake mode, the meta device, or a real device."""
    reference = next((tensor for _, tensor in _named_state(model)), None)
    if reference is None:
        return value
    mode: FakeTensorMode | None = reference.fake_mode if isinstance(reference, FakeTensor) else None

    def move(item: Any) -> Any:
        if isinstance(item, FakeTensor):
            return item
        if isinstance(item, Tensor):
            return mode.from_tensor(item) if mode is not None else item.to(reference.device)
        if isinstance(item, Mapping):
            return {key: move(entry) for key, entry in item.items()}
        if type(item) in (list, tuple):
            return type(item)(move(entry) for entry in item)
        return item

    return move(value)


def _explain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Exception:
    """Tell wrong example inputs (the model itself raises) from a model that export cannot follow."""
    module = failing_module(model, error)
    where = f"module '{module}' ({type(model.get_submodule(module)).__name__})"
    reason = _first_line(error)
    if not any(isinstance(tensor, FakeTensor) or tensor.is_meta for _, tensor in _named_state(model)):
        try:
            with evaluation(model):
                model(*args, **kwargs)
        except Exception as direct:  # noqa: BLE001  whatever a forward raises is the caller's error here
            found = ", ".join([*(_kind(value) for value in args), *(f"{key}={_kind(value)}" for key, value in kwargs.items())])
            module = failing_module(model, direct)
            return ExampleInputsError(
                f"The model raises on the example inputs, in module '{module}' ({type(model.get_submodule(module)).__name__}): "
                f"{_first_line(direct)}. Given: {found or 'no arguments'}. "
                "Pass the arguments that its forward takes: a tensor, a tuple, or a dict of names."
            )
    return TraceError(
        f"torch.export cannot follow {where}: {reason}. "
        "Usually a branch or a size depends on the data of a tensor there; make it depend on shapes only, "
        "or trace the part of the model without that module."
    )


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Qualified name of the innermost module of `model` on the traceback of `error`; "" when none is."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = names[id(owner)]
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:400].rstrip(".")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _inline_wrapped_regions(graph_module: GraphModule) -> None:
    """Put regions that export wraps (a `torch.no_grad` or autocast inside forward) back into the graph they came from."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and str(node.target).startswith("wrap_"):
            holders = [arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr"]
            region = getattr(graph_module, str(holders[0].target), None) if len(holders) == 1 else None
            if isinstance(region, GraphModule):
                _inline_wrapped_regions(region)
                operands = node.args[node.args.index(holders[0]) + 1 :]
                _replace_by_region(graph_module.graph, node, region.graph, operands)
                if not holders[0].users:
                    graph_module.graph.erase_node(holders[0])


def _replace_by_region(graph: Graph, node: Node, region: Graph, operands: Sequence[Any]) -> None:
    """Copy the nodes of `region` in front of `node`, give `node`'s users its results, and take `node` out."""
    placeholders = [inner for inner in region.nodes if inner.op == "placeholder"]
    copies: dict[Node, Any] = dict(zip(placeholders, operands, strict=True))
    returned: Any = None
    with graph.inserting_before(node):
        for inner in region.nodes:
            if inner.op == "output":
                returned = torch.fx.node.map_arg(inner.args[0], copies.__getitem__)
            elif inner.op != "placeholder":
                copies[inner] = graph.node_copy(inner, copies.__getitem__)
    if isinstance(returned, list | tuple):
        for user in list(node.users):  # each takes one of the results
            user.replace_all_uses_with(returned[int(user.args[1])])  # type: ignore[arg-type]
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(returned)
    graph.erase_node(node)
