"""Compare one op call of a pruned forward with its prediction: the only place that decides what counts as a difference.

Two drivers use it: `dry_run` on a skeleton without data, and `Observer` on the pruned model's own run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.fx import Node

from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.width_factors import follows_width
from proxyprune.tracing.nodes import is_unread, output_shapes

BOOKKEEPING: Mapping[str, str] = {
    "aten::detach": "autograd is on in one run and off in another",
    "aten::alias": "autograd adds it to results that are returned unchanged",
    "aten::contiguous": "the strides of a kernel's result decide whether an implementation calls it",
    "aten::lift": "torch.export and a live run register a tensor made in forward under different names",
    "aten::_assert": "torch.export adds assertions that the forward does not make",
    "aten::promote_types": "computes with types; code that makes a tensor from Python numbers calls it",
    "aten::_has_compatible_shallow_copy_type": "module.to() in a forward asks whether it may keep its parameter",
    "prim::": "reads of a tensor's properties, which compute nothing",
}
"""Start of an op's name -> why the op is not compared. Names are those of the schema."""

FREE_ARGUMENTS: Mapping[str, str] = {
    "device": "a skeleton lives on another device",
    "pin_memory": "belongs to the device",
    "non_blocking": "belongs to the device",
    "cudnn_enable": "a backend flag; the recorder switches cuDNN off",
    "cudnn_enabled": "a backend flag; the recorder switches cuDNN off",
}
"""Argument -> why its value does not matter."""

SHOWN_ARGUMENTS: Mapping[str, str] = {
    "size": "view, expand, zeros, empty: the shape of the result; -1 stands for the same number",
    "shape": "reshape: the shape of the result; -1 stands for the same number",
    "sizes": "unflatten: part of the shape of the result; -1 stands for the same number",
    "repeats": "repeat, repeat_interleave: the result is that many times as long",
    "split_size": "split: the lengths of the results",
    "split_sizes": "split_with_sizes: the lengths of the results",
    "output_size": "upsample, adaptive pooling: the shape of the result",
    "normalized_shape": "layer_norm, rms_norm: the last dimensions of the input, or the op raises",
}
"""Argument -> why comparing the shapes of the results is enough."""

_SLICE_BOUNDS = ("start", "end")


@dataclass(frozen=True)
class Difference:
    """The first call at which a pruned forward is not what was predicted.

    Attributes:
        progress: Number of predicted calls that agree.
        module: Module whose forward made the call.
        node: The traced op that was expected there, or None at the end of the program.
        message: What was predicted and what was found.
    """

    progress: int
    module: str
    node: Node | None
    message: str


@dataclass(frozen=True, slots=True)
class PredictedCall:
    """One op call of the pruned program.

    Attributes:
        node: The traced op.
        arguments: Schema name -> predicted value, defaults filled in; tensors are nodes.
        shapes: Predicted shapes of the results; () for one that is no tensor. None if no size was predicted, because the op's result is
            unread and may have any size.
        prediction: The sizes behind it; a factor may differ if it follows one of them.
    """

    node: Node
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...] | None
    prediction: Prediction


@functools.cache
def is_bookkeeping(func: Any) -> bool:
    """Return True for an op that is not compared."""
    return str(func._schema.name).startswith(tuple(BOOKKEEPING))


def is_extra_constant(call: PredictedCall, func: Any) -> bool:
    """Return True for a number that a run without data makes a tensor of.

    `x[..., 0] = 1.0` does so for any tensor but one on the CPU, which is what a program on values was recorded with.
    """
    return func is torch.ops.aten.scalar_tensor.default and call.node.target is not func and call.prediction.graph.program.on_values


class PredictedCalls(Sequence[PredictedCall]):
    """The calls that the pruned forward must make, in order. Each is worked out when it is first read: many runs end early."""

    def __init__(self, prediction: Prediction) -> None:
        self._prediction = prediction
        self._nodes = tuple(_compared_nodes(prediction))
        self._known: dict[int, PredictedCall] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    @overload
    def __getitem__(self, index: int) -> PredictedCall: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[PredictedCall]: ...

    def __getitem__(self, index: int | slice) -> PredictedCall | Sequence[PredictedCall]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if index not in self._known:
            self._known[index] = _predicted_call(self._prediction, self._nodes[index])
        return self._known[index]


def predicted_calls(prediction: Prediction) -> Sequence[PredictedCall]:
    """Return the calls that the pruned forward must make, in order."""
    return PredictedCalls(prediction)


def _predicted_call(prediction: Prediction, node: Node) -> PredictedCall:
    if is_unread(node):
        return PredictedCall(node, {}, None, prediction)
    shapes = tuple(prediction.output_shape(node, index) if shape else () for index, shape in enumerate(output_shapes(node)))
    return PredictedCall(node, named_arguments(node.target, *prediction.arguments(node)), shapes, prediction)


def _compared_nodes(prediction: Prediction) -> Iterator[Node]:
    for node in prediction.graph.program.calls:
        if hasattr(node.target, "_schema") and not is_bookkeeping(node.target) and not prediction.is_removed(node):
            yield node


def named_arguments(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name. torch omits trailing arguments that have their default."""
    defaults = _defaults(func)
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


@functools.cache
def _defaults(func: Any) -> dict[str, Any]:
    return {argument.name: argument.default_value for argument in func._schema.arguments}


def difference_of_arguments(call: PredictedCall, func: Any, arguments: Mapping[str, Any]) -> str | None:
    """Compare op and arguments with the prediction; returns the difference in words, or None."""
    if call.node.target is not func:
        return f"{_name(call.node.target)} was predicted, the module calls {_name(func)}"
    for name, predicted in call.arguments.items():
        found = arguments.get(name)
        if name in FREE_ARGUMENTS or (name in SHOWN_ARGUMENTS and not isinstance(found, Tensor)):
            continue
        same = _same_bounds(name, predicted, found, arguments) if name in _SLICE_BOUNDS else _same(predicted, found)
        if not same and not follows_width(call.prediction, call.node, predicted, found):
            return f"{_name(func)} was predicted with {name}={_shown(predicted)}, the module uses {name}={_shown(found)}"
    return None


def difference_of_results(call: PredictedCall, result: Any) -> str | None:
    """Compare the shapes of an op's results with the prediction; returns the difference in words, or None."""
    if call.shapes is None:
        return None
    results = result if isinstance(result, list | tuple) else (result,)
    found = tuple(tuple(item.shape) if isinstance(item, Tensor) else () for item in results) or ((),)
    if found == call.shapes:
        return None
    op = _name(call.node.target)
    return f"{op} -> {_shown_shapes(call.shapes)} was predicted, the module does {op} -> {_shown_shapes(found)}"


def _same(predicted: Any, found: Any) -> bool:
    if isinstance(predicted, Node) or isinstance(found, Tensor):
        return isinstance(predicted, Node) and isinstance(found, Tensor)
    if isinstance(predicted, list | tuple):
        alike = isinstance(found, list | tuple) and len(found) == len(predicted)
        return alike and all(_same(one, other) for one, other in zip(predicted, found, strict=True))
    return bool(predicted == found) or (predicted != predicted and found != found)


def _same_bounds(name: str, predicted: Any, found: Any, arguments: Mapping[str, Any]) -> bool:
    """Compare a bound of a slice as a position: every bound past the end reads up to the end, and so does none.

    Whether an open bound is recorded as none or as a number depends on the version of torch.
    """
    tensor, dim = arguments.get("self"), arguments.get("dim")
    if not (isinstance(tensor, Tensor) and isinstance(dim, int) and all(isinstance(bound, int | None) for bound in (predicted, found))):
        return _same(predicted, found)
    length = tensor.shape[dim]
    unbounded = 0 if name == "start" else length
    one, other = (unbounded if bound is None else slice(bound, None).indices(length)[0] for bound in (predicted, found))
    return one == other


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _shown(value: Any) -> str:
    return "a tensor" if isinstance(value, Node | Tensor) else repr(value)


def _shown_shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " ".join(str(list(shape)) for shape in shapes)
