"""A lean stand-in for torch.export: run the forward once on empty tensors and write its ops down.

Export does the same at ten times the price, and much else that a trace for pruning has no use for. The recorder gives up, and leaves the
model to export, wherever it is not sure to see what export would: a value that is read, a tensor it does not know, a state that changes.
The tests hold the two programs equal on the whole zoo.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.support.nested import tensors_of
from proxyprune.tracing.dispatch import NumbersWritten, ReportedDevice, RunAborted, SizesFromValues, WholeOps
from proxyprune.tracing.empty_ops import EmptyOps, emptied, on_meta
from proxyprune.tracing.model_call import as_if_exporting, evaluation
from proxyprune.tracing.module_stack import module_stack
from proxyprune.tracing.names import named_state
from proxyprune.tracing.program import Program, assemble
from proxyprune.tracing.recording import Recording
from proxyprune.tracing.skeleton import EmptyTensors, empty_inputs, skeleton

_READS = frozenset(f"aten::{name}" for name in "is_nonzero item _local_scalar_dense equal".split())
"""Ops that read values."""

_UNSURE = frozenset(f"aten::{name}" for name in "lift_fresh scalar_tensor set_ resize_".split())
"""Numbers that Python code writes into a tensor by an op that depends on the device, and new storage for a tensor."""

_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False, exporting: bool = True
) -> Program | None:
    """Return the program of a model, or None where torch.export has to look.

    Args:
        model: Any module; it is not changed.
        args: Positional arguments, on the model's device.
        kwargs: Named arguments, likewise.
        training: Run in training mode.
        exporting: Let the forward take its branch for export, where it has one. Otherwise it takes the branch of an ordinary call.

    Raises:
        SizesFromValues: If the values of a tensor decide a size, which torch.export does not follow either.
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
            as_if_exporting() if exporting else contextlib.nullcontext(),
            _without_cudnn(),
            NumbersWritten() if device.type == "cpu" and not exporting else contextlib.nullcontext(),
            ReportedDevice(device),
        ):
            recording = Recording(modules)
            recording.start(blank, inputs)
            recorder = _ProgramRecorder(recording, constants=not exporting)
            with recorder:
                results = list(tensors_of(blank(*inputs[0], **inputs[1])))
        if not recorder.sure:
            return None
        recording.graph.output(tuple(recording.maker(result) for result in results))
    except SizesFromValues:
        raise
    except (RunAborted, Exception):  # noqa: BLE001  whatever went wrong, export says it better
        return None
    if before != _tensors_held(blank):
        return None
    recording.leave_out_unread_detach()
    program = assemble(model, recording.graph, recording.placeholders, recording.owners, frozenset(recording.repeated))
    return replace(program, exporting=exporting, known_ops=recorder.empty_ops)


def _without_cudnn() -> contextlib.AbstractContextManager[None]:
    """Turn cuDNN off: whether it may be used is an argument of norms, which is false in export."""
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


class _ProgramRecorder(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Write a program down.

    Attributes:
        sure: False once something happened that torch.export must look at. Nothing is written down then, and the run goes on only to find
            out whether values decide a size.
    """

    def __init__(self, recording: Recording, *, constants: bool) -> None:
        super().__init__()
        self.recording = recording
        self.constants = constants
        self.empty_ops = EmptyOps()
        self.sure = True

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Write one op down."""
        if self.constants and func is torch.ops.aten.lift_fresh.default and not self.recording.is_known(args[0]):
            return self.recording.constant(args[0])
        if _decides_a_size(func, args):
            raise SizesFromValues
        if func._schema.name in _READS or torch.Tag.data_dependent_output in func.tags:
            raise RunAborted
        unsure = types or func._schema.name in _UNSURE or _has_mask(func, args) or not self.sure
        noted = None if unsure else self._noted(args, kwargs)
        if noted is None:
            self.sure = False
            return self.empty_ops.run(func, emptied(args), {key: emptied(value) for key, value in kwargs.items()})
        result = self.empty_ops.run(func, on_meta(args), {key: on_meta(value) for key, value in kwargs.items()})
        try:
            self.recording.add(func, *noted, result)
        except RunAborted:
            self.sure = False
        return result

    def _noted(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Return a call's arguments with nodes for tensors; None if some tensor has no node."""
        try:
            return self.recording.argument(args), {key: self.recording.argument(value) for key, value in kwargs.items()}
        except RunAborted:
            return None


def _has_mask(func: Any, args: Any) -> bool:
    return func in _INDEXING and any(index.dtype in (torch.bool, torch.uint8) for index in tensors_of(args[1]))


def _decides_a_size(func: Any, args: Any) -> bool:
    return torch.Tag.dynamic_output_shape in func.tags if func is not _INDEXING[0] else _has_mask(func, args)
