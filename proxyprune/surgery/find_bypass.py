"""How a removable block is called: which argument it passes on, and in what container it returns the result."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.errors import VerificationError
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import Bypassed
from proxyprune.surgery.verify_dry import Recording, extra_ops, record_actual, record_predicted
from proxyprune.tracing.model_call import Call
from proxyprune.tracing.nodes import op_name
from proxyprune.tracing.skeleton import Ghost

_NO_CHANGE = frozenset(
    {"aten.to", "aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.dropout", "aten._to_copy", "getitem"}
)


@dataclass
class _Call:
    """One block's arguments and result, tensors as they were."""

    arguments: dict[int | str, Any]
    result: Any


@dataclass
class _Watcher:
    calls: dict[str, _Call] = field(default_factory=dict)

    def hook(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
            self.calls[name] = _Call(dict([*enumerate(args), *kwargs.items()]), result)

        return note


def watch(skeleton: nn.Module, prediction: Prediction, example_inputs: Call, ghost: Ghost) -> tuple[Bypassed, ...]:
    """Run an unpruned skeleton once and note how each removed block hands its input on.

    Every tensor of that run is traced back to the op of the graph that made it, so that the argument is the one on the residual
    path, also where several have its shape.

    Raises:
        VerificationError: If a block's arguments cannot be told apart.
    """
    watcher = _Watcher()
    handles = [skeleton.get_submodule(name).register_forward_hook(watcher.hook(name), with_kwargs=True) for name in prediction.bypasses]
    try:
        actual = record_actual(skeleton, example_inputs, ghost)
    finally:
        for handle in handles:
            handle.remove()
    nodes = _makers(prediction, actual, ghost)
    return tuple(_bypassed(name, prediction, watcher.calls[name], actual, nodes) for name in prediction.bypasses)


def _makers(prediction: Prediction, actual: Recording, ghost: Ghost) -> dict[int, Node]:
    """Index of an actual op -> the traced op that it carries out."""
    predicted = record_predicted(prediction.unpruned, ghost)
    extra = extra_ops(predicted, actual)
    if extra is None:
        return {}
    mine = (index for index in itertools.count() if index not in extra)
    return dict(zip(mine, predicted.places, strict=False))


def _bypassed(name: str, prediction: Prediction, call: _Call, actual: Recording, nodes: Mapping[int, Node]) -> Bypassed:
    bypass = prediction.bypasses[name]
    template, holes = _template(call.result)
    arguments: dict[int, int | str] = {}
    for number, tensor in enumerate(holes):
        made = _origin(nodes.get(actual.made.get(id(tensor), -1)))
        sources = [pair.source for pair in bypass if made is not None and _origin(pair.result) == made]
        unread = not sources and made is not None and len(holes) > len(bypass)  # attention weights, a cache
        if not unread:
            arguments[number] = _passed_on(name, tensor, sources or [pair.source for pair in bypass], call, actual, nodes)
    return Bypassed(name, tuple(arguments.values()), _renumbered(template, {old: new for new, old in enumerate(arguments)}))


def _passed_on(name: str, tensor: Tensor, sources: Sequence[Node], call: _Call, actual: Recording, nodes: Mapping[int, Node]) -> int | str:
    """The argument that stands for `tensor` when the block is skipped."""
    alike = [key for key, value in call.arguments.items() if isinstance(value, Tensor) and value.shape == tensor.shape]
    wanted = [_origin(source) for source in sources]
    exact = [key for key in alike if _origin(nodes.get(actual.made.get(id(call.arguments[key]), -1))) in wanted]
    chosen = exact or (alike if len(alike) == 1 else [])
    if not chosen:
        raise VerificationError(
            f"Block '{name}' cannot be removed: it is not clear which of its arguments passes through it. "
            "The model is unchanged. Keep the block (keep=...), or prune widths.",
            module=name,
        )
    return chosen[0]


def _renumbered(template: Any, numbers: Mapping[int, int]) -> Any:
    """The template with its holes numbered anew; a hole without a number gets None."""
    if isinstance(template, dict):
        ((kind, content),) = template.items()
        if kind == "hole":
            return {kind: numbers[content]} if content in numbers else None
        if kind == "tuple":
            return {kind: [_renumbered(item, numbers) for item in content]}
        return {kind: {key: _renumbered(item, numbers) for key, item in content.items()}}
    return [_renumbered(item, numbers) for item in template] if isinstance(template, list) else template


def _origin(node: Node | None) -> Node | None:
    """The op behind copies that change nothing."""
    while node is not None and op_name(node) in _NO_CHANGE and isinstance(node.args[0], Node) and node.args[0].op == "call_function":
        node = node.args[0]
    return node


def _template(result: Any) -> tuple[Any, list[Tensor]]:
    """The output's structure with numbered holes for its tensors, and these tensors."""
    holes: list[Tensor] = []

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            holes.append(value)
            return {"hole": len(holes) - 1}
        if isinstance(value, Mapping):
            return {"dict": {key: visit(item) for key, item in value.items()}}
        if isinstance(value, tuple):
            return {"tuple": [visit(item) for item in value]}
        if isinstance(value, list):
            return [visit(item) for item in value]
        return value if isinstance(value, bool | int | float | str | None) else None

    return visit(result), holes
