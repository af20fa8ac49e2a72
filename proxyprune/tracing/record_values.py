"""Run the forward on real tensors and write its ops down: for forwards that read values.

It is the last resort, after the recorder on empty tensors and torch.export. Branches are those that the example inputs take, and a size
that the data decide is the one that came; `proxyprune.tracing.values` has the details. Nothing is kept of the activations, so a recording
needs as much memory as one run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from proxyprune.support.nested import mapped, tensors_of
from proxyprune.tracing.dispatch import WholeOps
from proxyprune.tracing.model_call import evaluation
from proxyprune.tracing.module_stack import module_stack
from proxyprune.tracing.module_state import unchanged
from proxyprune.tracing.names import named_state
from proxyprune.tracing.program import Program, assemble
from proxyprune.tracing.random_state import random_numbers_kept
from proxyprune.tracing.recording import ValueRecording
from proxyprune.tracing.values import DECIDED, FollowsFromShapes, NotedValues


def has_values(model: nn.Module) -> bool:
    """Return False if some parameter or buffer has no data (meta device or fake tensor), so that the model cannot run."""
    return not any(tensor.is_meta or isinstance(tensor, FakeTensor) for _, tensor in named_state(model))


def record_values(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False) -> Program:
    """Record the program of a model that has values. What the forward raises is passed on.

    Args:
        model: Any module; its state is as before afterwards.
        args: Positional arguments, on the model's device; they are copied.
        kwargs: Named arguments, likewise.
        training: Run in training mode.
    """
    args, kwargs = mapped(args, Tensor.clone), mapped(kwargs, Tensor.clone)
    with unchanged(model), random_numbers_kept(), module_stack(model) as modules, evaluation(model, training=training):
        recording = ValueRecording(modules)
        recording.start(model, (args, kwargs))
        reads = NotedValues(recording.read)
        with _ValueRecorder(recording, reads), reads:
            results = list(tensors_of(model(*args, **kwargs)))
        recording.graph.output(tuple(recording.maker(result) for result in results))
    recording.leave_out_unread_detach()
    return assemble(model, recording.graph, recording.placeholders, recording.owners, frozenset(recording.repeated), on_values=True)


class _ValueRecorder(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    def __init__(self, recording: ValueRecording, reads: NotedValues) -> None:
        super().__init__()
        self.recording = recording
        self.reads = reads
        self.follows_from_shapes = FollowsFromShapes()

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Write one op down."""
        if self.reads.reading:
            return func(*args, **kwargs)
        noted_args, noted_kwargs = self.recording.argument(args), {key: self.recording.argument(value) for key, value in kwargs.items()}
        empty_args, empty_kwargs = _empty(noted_args), _empty(noted_kwargs)
        result = func(*args, **kwargs)
        if next(tensors_of((args, kwargs, result)), None) is None:  # an op on types, such as promote_types
            return result
        node = self.recording.add(func, noted_args, noted_kwargs, result)
        if not self.follows_from_shapes(func, empty_args, empty_kwargs, result):
            node.meta[DECIDED] = True
        return result


def _empty(value: Any) -> Any:
    """Return noted arguments with empty tensors for nodes, which an op in place may write to."""
    if isinstance(value, Node):
        tensor = value.meta["val"]
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    if isinstance(value, dict):
        return {key: _empty(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_empty(item) for item in value)
    return value
