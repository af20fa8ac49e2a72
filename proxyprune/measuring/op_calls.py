"""Single calls of a network's ops, as values: what a cost table measures, at the network's own widths and at others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from proxyprune.support.nested import leaves_of, mapped_leaves
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.nodes import op_name


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a call takes.

    Attributes:
        shape: Its sizes.
        dtype: Its type.
        parameter: Whether it is a weight, which is read from memory that no earlier op touched.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: bool = False

    def __str__(self) -> str:
        kind = "weight" if self.parameter else "tensor"
        return f"{kind}[{'x'.join(map(str, self.shape))}]{str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class OpCall:
    """One call of an op; calls with equal text take equal time.

    Attributes:
        text: Op, shapes and other arguments: the key in the table.
        target: What is called.
        args: Positional arguments with `TensorSpec` in the place of tensors.
        kwargs: Keyword arguments, likewise.
    """

    text: str
    target: Callable[..., Any] = field(repr=False, compare=False)
    args: tuple[Any, ...] = field(repr=False, compare=False)
    kwargs: Mapping[str, Any] = field(repr=False, compare=False)

    @staticmethod
    def of(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OpCall:
        """Build the call of a node with these arguments."""
        shown = [_text(value) for value in args] + [f"{name}={_text(value)}" for name, value in kwargs.items()]
        return OpCall(f"{node.target}({', '.join(shown)})", node.target, args, kwargs)  # type: ignore[arg-type]

    @property
    def tensors(self) -> list[TensorSpec]:
        """All tensors that the call takes."""
        return list(leaves_of((self.args, dict(self.kwargs)), TensorSpec))

    def bound(self, make: Callable[[TensorSpec], Tensor]) -> Callable[[], Any]:
        """Return the call with real tensors."""
        args, kwargs = (mapped_leaves(value, TensorSpec, make) for value in (self.args, dict(self.kwargs)))
        return lambda: self.target(*args, **kwargs)


def call_of(node: Node, prediction: Prediction) -> OpCall:
    """Return the call that a node makes in a pruned network."""
    args, kwargs = prediction.arguments(node)

    def spec(value: Any) -> Any:
        if isinstance(value, Node):
            return tensor_of(value, prediction)
        if isinstance(value, list | tuple):
            return tuple(spec(item) for item in value)
        return value

    return OpCall.of(node, tuple(spec(value) for value in args), {name: spec(value) for name, value in kwargs.items()})


def tensor_of(node: Node, prediction: Prediction) -> TensorSpec | None:
    """Return the tensor that a node yields in a pruned network, or None if it yields none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    state = prediction.graph.program.state
    if node.op == "placeholder" and node.name in state:
        return TensorSpec(prediction.shape(state[node.name]), value.dtype, parameter=True)
    if node.op == "call_function":
        return TensorSpec(prediction.output_shape(node), value.dtype)
    return TensorSpec(tuple(int(size) for size in value.shape), value.dtype)


def computes(node: Node) -> bool:
    """Return whether a node does work of its own: it makes a tensor, or writes into one, and is no view."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else (value,)
    if op_name(node) == "getitem" or not any(isinstance(item, Tensor) for item in values):
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None or not node.all_input_nodes:
        return False
    return not any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
