"""How a removable block is called: which argument it passes on, and in what container it returns the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from proxyprune.skeleton import Ghost, empty_inputs
from proxyprune.surgery import HOLE, Bypassed
from proxyprune.trace import ExampleInputs, call_arguments, evaluation


def watch(skeleton: nn.Module, blocks: Collection[str], example_inputs: ExampleInputs, ghost: Ghost) -> tuple[Bypassed, ...]:
    """Run an unpruned skeleton once and note how each of `blocks` hands its input on.

    The argument that is passed on is the first tensor of the shape of the block's first output tensor, as in every network where a
    block adds to a stream. The verification that follows checks it against the traced graph.
    """
    seen: dict[str, Bypassed] = {}
    handles = [skeleton.get_submodule(name).register_forward_hook(_noting(name, seen), with_kwargs=True) for name in blocks]
    args, kwargs = call_arguments(example_inputs)
    try:
        with evaluation(skeleton), ghost.running():
            skeleton(*empty_inputs(args, ghost), **empty_inputs(kwargs, ghost))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(seen[name] for name in blocks if name in seen)


def _noting(name: str, seen: dict[str, Bypassed]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        template, first = _template(result)
        for key, value in [*enumerate(args), *kwargs.items()]:
            if isinstance(value, Tensor) and first is not None and value.shape == first.shape:
                seen[name] = Bypassed(name, key, template)
                return

    return hook


def _template(result: Any) -> tuple[Any, Tensor | None]:
    """The output's structure with HOLE for its first tensor and None for other leaves."""
    first: list[Tensor] = []

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            first.append(value)
            return HOLE if len(first) == 1 else None
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and isinstance(value, Mapping):
            return {key: visit(item) for key, item in value.items()}
        if isinstance(value, Mapping):
            return {key: visit(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return {"tuple": [visit(item) for item in value]}
        if isinstance(value, list):
            return [visit(item) for item in value]
        return value if isinstance(value, bool | int | float | str | None) else None

    template = visit(result)
    return template, first[0] if first else None
