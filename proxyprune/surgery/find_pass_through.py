"""Find which argument a removed block passes through, and the container in which it returns its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.errors import VerificationError
from proxyprune.graph.structure import ResidualPath
from proxyprune.surgery.comparison import predicted_calls
from proxyprune.surgery.dry_run import DryRun, LinedUp
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import RemovedBlock
from proxyprune.tracing.nodes import op_name

_NO_CHANGE = frozenset(
    {"aten.to", "aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.dropout", "aten._to_copy", "getitem"}
)


@dataclass
class _Call:
    """The arguments and the result of one block, with the tensors themselves."""

    arguments: dict[int | str, Any]
    result: Any


@dataclass
class _Watcher:
    calls: dict[str, _Call] = field(default_factory=dict)

    def hook(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
            self.calls[name] = _Call(dict([*enumerate(args), *kwargs.items()]), result)

        return note


def find_pass_through(skeleton: nn.Module, prediction: Prediction, run: DryRun) -> tuple[RemovedBlock, ...]:
    """Run an unpruned skeleton once and find the argument that each removed block passes through.

    Every tensor of that run is matched with the op of the graph that made it. So the argument on the residual path is found, also if
    several arguments have its shape.

    Raises:
        VerificationError: If several arguments of a block could be the one on the residual path.
    """
    watcher, removed = _Watcher(), prediction.residual_paths
    handles = [skeleton.get_submodule(name).register_forward_hook(watcher.hook(name), with_kwargs=True) for name in removed]
    try:
        lined_up = run.line_up(skeleton, predicted_calls(prediction.unpruned))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_removed_block(name, paths, watcher.calls[name], lined_up) for name, paths in removed.items())


def _removed_block(name: str, paths: Sequence[ResidualPath], call: _Call, lined_up: LinedUp) -> RemovedBlock:
    template, holes = _template(call.result)
    arguments: dict[int, int | str] = {}
    for number, tensor in enumerate(holes):
        made = _maker(tensor, lined_up)
        sources = [path.source for path in paths if made is not None and _origin(path.result) == made]
        unread = not sources and made is not None and len(holes) > len(paths)  # attention weights, a cache
        if unread:
            given = [key for key, value in call.arguments.items() if isinstance(value, Tensor) and _maker(value, lined_up) == made]
            if given:  # handed on to the next block, as a position bias is
                arguments[number] = given[0]
        else:
            arguments[number] = _passed_on(name, tensor, sources or [path.source for path in paths], call, lined_up)
    return RemovedBlock(name, tuple(arguments.values()), _renumbered(template, {old: new for new, old in enumerate(arguments)}))


def _maker(tensor: Tensor, lined_up: LinedUp) -> Node | None:
    return _origin(lined_up.maker(tensor)) if lined_up.complete else None


def _passed_on(name: str, tensor: Tensor, sources: Sequence[Node], call: _Call, lined_up: LinedUp) -> int | str:
    """Return the argument that replaces `tensor` when the block is skipped."""
    alike = [key for key, value in call.arguments.items() if isinstance(value, Tensor) and value.shape == tensor.shape]
    wanted = [_origin(source) for source in sources]
    exact = [key for key in alike if _maker(call.arguments[key], lined_up) in wanted]
    chosen = exact or (alike if len(alike) == 1 else [])
    if not chosen:
        raise VerificationError(
            f"Block '{name}' cannot be removed: it is not clear which of its arguments passes through it. "
            "The model is unchanged. Keep the block (keep=...), or prune widths.",
            module=name,
        )
    return chosen[0]


def _renumbered(template: Any, numbers: Mapping[int, int]) -> Any:
    """Return the template with its holes renumbered; a hole without a number becomes None."""
    if isinstance(template, dict):
        ((kind, content),) = template.items()
        if kind == "hole":
            return {kind: numbers[content]} if content in numbers else None
        if kind == "tuple":
            return {kind: [_renumbered(item, numbers) for item in content]}
        return {kind: {key: _renumbered(item, numbers) for key, item in content.items()}}
    return [_renumbered(item, numbers) for item in template] if isinstance(template, list) else template


def _origin(node: Node | None) -> Node | None:
    """Return the op whose result is passed on by copies that change nothing."""
    while node is not None and op_name(node) in _NO_CHANGE and isinstance(node.args[0], Node) and node.args[0].op == "call_function":
        node = node.args[0]
    return node


def _template(result: Any) -> tuple[Any, list[Tensor]]:
    """Return the structure of the output with numbered holes for its tensors, and these tensors."""
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
