"""Read a model once: one graph of ATen ops that still knows its modules.

The recorder does it where it can; torch.export, non-strict, does the rest. Both keep linear, convolution, norms and attention whole and
note the owning module of every op. Autograd is off while tracing, which halves the time, and nn.MultiheadAttention's fused inference
kernel is off, because its single op hides the projections.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import Node

from proxyprune.errors import InputError, TraceError
from proxyprune.tracing.dispatch import SizesFromValues
from proxyprune.tracing.export import export
from proxyprune.tracing.model_call import (
    Call,
    ExampleInputs,
    TrainingCall,
    call_arguments,
    evaluation,
    on_device_of,
)
from proxyprune.tracing.nodes import op_name
from proxyprune.tracing.parts import how_to_prune, traceable_part
from proxyprune.tracing.preconditions import check_traceable
from proxyprune.tracing.program import FurtherCall, Program
from proxyprune.tracing.record import record
from proxyprune.tracing.record_values import has_values, record_values
from proxyprune.tracing.torch_logs import without_log_of_failures

__all__ = ["ExampleInputs", "Program", "call_arguments", "capture", "evaluation", "on_device_of"]


@contextlib.contextmanager
def _without_log_of_failures() -> Iterator[None]:
    """Silence what torch logs or warns about in addition to the error; `_explain` reports the failure in a sentence.

    The warning about attributes that a forward assigns is silenced too: they are restored.
    """
    with without_log_of_failures(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assigned during export")
        yield


def capture_all(model: nn.Module, example_inputs: ExampleInputs, also: Sequence[Call]) -> Program:
    """Return the program of the first call, with those of further calls in `further`.

    Raises:
        InputError: If `also` is no list of calls; otherwise as `capture`.
    """
    if not isinstance(also, list | tuple):
        raise InputError(
            f"Expected also to be a list of further example inputs, found {type(also).__name__}. Put one call in a list: also=[inputs]."
        )
    program = capture(model, example_inputs)
    return replace(program, further=tuple(FurtherCall(inputs, capture(model, inputs)) for inputs in also)) if also else program


def capture(model: nn.Module, example_inputs: Call) -> Program:
    """Read a model into a `Program`.

    The model may live on any device, on the meta device, or be built under FakeTensorMode; inputs follow it.

    Args:
        model: Any module; it is not changed.
        example_inputs: One tensor, a tuple of arguments, or a dict of named arguments. A batch of 1 makes costs per sample.

    Raises:
        InputError: If the model must be unwrapped, initialised or left unquantised first, or returns no tensor.
        ExampleInputsError: If the model itself raises on these inputs.
        TraceError: If the model runs but its forward cannot be followed; the message names the module and the reason, and a part of the
            network that can be pruned alone.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a torch.nn.Module to trace, found {type(model).__name__}.")
    check_traceable(model)
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = on_device_of(model, args), on_device_of(model, kwargs)
    training = isinstance(example_inputs, TrainingCall)
    with _without_log_of_failures():
        try:
            program = _recorded(model, args, kwargs, training=training) or _exported(model, args, kwargs, example_inputs)
        except SizesFromValues:
            program = _recorded_on_values(model, args, kwargs, example_inputs)
    _check_outputs(model, program)
    return program


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Program | None:
    """Record the forward of an ordinary call; if that reads values, its branch for export, which often does not."""
    with contextlib.suppress(SizesFromValues):
        ordinary = record(model, args, kwargs, training=training, exporting=False)
        if ordinary is not None:
            return ordinary
    return record(model, args, kwargs, training=training)


def capture_on_values(model: nn.Module, example_inputs: Call) -> Program:
    """Read a model that has values into a `Program` by a run on the example inputs; raises whatever its forward raises."""
    args, kwargs = call_arguments(on_device_of(model, example_inputs))
    return record_values(model, args, kwargs, training=isinstance(example_inputs, TrainingCall))


_NUMBERS = frozenset({"aten.item", "aten._local_scalar_dense"})
"""Ops by which torch.export notes that Python code reads a number without knowing it."""


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], example_inputs: Call) -> Program:
    """Return the program by torch.export; where that fails, by a run on the example inputs.

    Raises:
        ExampleInputsError: If the model itself raises on these inputs.
        TraceError: If neither way succeeds.
    """
    try:
        program = export(model, args, kwargs, training=isinstance(example_inputs, TrainingCall))
    except TraceError as error:
        return _recorded_on_values(model, args, kwargs, example_inputs, error)
    if has_values(model) and any(op_name(node) in _NUMBERS for node in program.calls):  # no run without data could repeat it
        with contextlib.suppress(TraceError):
            return _recorded_on_values(model, args, kwargs, example_inputs)
    return program


def _recorded_on_values(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], example_inputs: Call, failure: TraceError | None = None
) -> Program:
    """Return the program by a run on the example inputs.

    Args:
        model: The network.
        args: Its positional arguments.
        kwargs: Its named arguments.
        example_inputs: Both, as they were given.
        failure: Why torch.export does not follow; it is asked when it is needed.

    Raises:
        ExampleInputsError: If the model itself raises on these inputs.
        TraceError: If it has no values, or the run cannot be recorded.
    """
    training = isinstance(example_inputs, TrainingCall)
    problem = (
        "With weights on a real device, the values that it depends on could be read; this model has none (meta device or fake tensors)."
    )
    if has_values(model):
        try:
            return record_values(model, args, kwargs, training=training)
        except Exception as error:  # noqa: BLE001  whatever the recorded forward raises is reported with the reason of export
            problem = f"A run on the example inputs cannot be recorded either ({type(error).__name__}: {error})."
    if failure is None:
        try:
            return export(model, args, kwargs, training=training)
        except TraceError as error:
            failure = error
    part = _part_of(model, example_inputs) if has_values(model) else ""
    raise TraceError(f"{failure} {problem} {part}".rstrip()) from failure


def _part_of(model: nn.Module, example_inputs: Call) -> str:
    """Return how a part of the network can be pruned instead, or ""."""
    name = traceable_part(model, example_inputs, _can_be_recorded)
    return how_to_prune(name, type(model.get_submodule(name)).__name__) if name else ""


def _can_be_recorded(part: nn.Module, example_inputs: ExampleInputs) -> bool:
    args, kwargs = call_arguments(example_inputs)
    try:
        try:
            program = record(part, args, kwargs) or record_values(part, args, kwargs)
        except SizesFromValues:
            program = record_values(part, args, kwargs)
        _check_outputs(part, program)
    except Exception:  # noqa: BLE001  a part that cannot be traced is no suggestion
        return False
    return True


def _check_outputs(model: nn.Module, program: Program) -> None:
    """Raise if no output depends on the weights: nothing would then hold the network's last layers in place."""
    kind = type(model).__name__
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    if not output.all_input_nodes:
        raise InputError(
            f"The forward of {kind} returns no tensor on these example inputs, so there is no output that pruning could preserve. "
            "Return the tensors that the network computes (in a tuple, list, dict or dataclass), or pass inputs for which it does."
        )
    if program.trainable and not _depends_on_weights(output, program):
        raise InputError(
            f"The outputs of {kind} on these example inputs depend on no parameter, so there is no output that pruning could preserve. "
            "Pass inputs for which its layers are used, and return what they compute."
        )


def _depends_on_weights(output: Node, program: Program) -> bool:
    seen: set[Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if program.state.get(node.name) in program.trainable:
            return True
        new = [source for source in node.all_input_nodes if source not in seen]
        seen.update(new)
        waiting += new
    return False
