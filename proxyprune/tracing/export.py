"""Export a model with `torch.export`, and turn the result into a `Program`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from proxyprune.errors import ExampleInputsError, TraceError
from proxyprune.tracing.model_call import (
    TensorOutputs,
    evaluation,
    failing_module,
)
from proxyprune.tracing.module_state import unchanged
from proxyprune.tracing.names import named_state
from proxyprune.tracing.program import Program, assemble

_PREFIX = "model"


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


@contextlib.contextmanager
def _without_dump() -> Iterator[None]:
    """Leave out the part of the graph that torch.export prints to stderr when it fails; everything else that is printed is passed on."""
    printed = io.StringIO()
    dump = ""
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except Exception as error:
        dump = str(getattr(error, "partial_fx_graph", ""))
        raise
    finally:
        sys.stderr.write(printed.getvalue().replace(f"{dump}\n", "") if dump else printed.getvalue())


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False) -> Program:
    """Return the program of a model by torch.export.

    Raises:
        ExampleInputsError: If the model itself raises on these inputs.
        TraceError: If the model runs but torch.export cannot follow it.
    """
    wrapper = TensorOutputs(model)
    wrapper.training = model.training
    with unchanged(model), evaluation(wrapper, training=training), _without_stack_traces():
        try:
            with _without_dump():
                exported = torch.export.export(wrapper, args, kwargs, strict=False)
        except Exception as error:
            raise _explain(model, args, kwargs, error, training=training) from error
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
                "so the network has no fixed cost. Give inputs that avoid that branch (no mask, no padding), "
                "or trace the part of the model without that module."
            )


def _values(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, Tensor)]


def _program(model: nn.Module, graph: Graph, signature: Any) -> Program:
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    placeholders = {spec.arg.name: spec.target.removeprefix(f"{_PREFIX}.") for spec in signature.input_specs if spec.kind in kinds}
    owners = {node.name: _owner(node) for node in graph.nodes if node.op == "call_function"}
    return assemble(model, graph, placeholders, owners, _repeated(graph))


def _owner(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    path = str(path).removeprefix(_PREFIX).removeprefix(".")
    return path.split("@", maxsplit=1)[0]  # export writes "block@1" for the second call of a shared module


def _repeated(graph: Graph) -> frozenset[str]:
    """Export marks the second call of a module "block@1", in the keys of the stack or, in older versions, in the paths."""
    stacks = [node.meta.get("nn_module_stack") or {} for node in graph.nodes]
    again = {str(path) for stack in stacks for key, (path, _) in stack.items() if "@" in str(key) or "@" in str(path)}
    return frozenset(path.split("@")[0].removeprefix(_PREFIX).removeprefix(".") for path in again)


def _explain(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception, *, training: bool) -> Exception:
    """Tell wrong example inputs (the model itself raises) from a model that export cannot follow."""
    module = failing_module(model, error)
    where = f"module '{module}' ({type(model.get_submodule(module)).__name__})"
    reason = _first_line(error)
    if not any(isinstance(tensor, FakeTensor) or tensor.is_meta for _, tensor in named_state(model)):
        try:
            with unchanged(model), evaluation(model, training=training):
                model(*args, **kwargs)
        except Exception as direct:  # noqa: BLE001  whatever a forward raises is the caller's error here
            found = ", ".join([*(_kind(value) for value in args), *(f"{key}={_kind(value)}" for key, value in kwargs.items())])
            module = failing_module(model, direct)
            return ExampleInputsError(
                f"The model raises on the example inputs, in module '{module}' ({type(model.get_submodule(module)).__name__}): "
                f"{_first_line(direct)}. Given: {found or 'no arguments'}. "
                "Pass the arguments that its forward takes: a tensor, a tuple, or a dict of names."
            )
    depends_on_data = "data-dependent" in str(error) or "DataDependent" in type(error).__name__
    advice = (
        "A branch or a size depends on the data of a tensor there; make it depend on shapes only"
        if depends_on_data
        else "Something there cannot run on tensors without values; replace it by torch ops on plain tensors"
    )
    return TraceError(f"torch.export cannot follow {where}: {reason}. {advice}, or trace the part of the model without that module.")


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
