"""Parts of a network: the inputs that a submodule receives, and which submodule can be traced when the whole cannot."""

from __future__ import annotations

import heapq
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from proxyprune.errors import InputError, UnknownNameError
from proxyprune.support.nested import mapped
from proxyprune.tracing.dispatch import RunAborted
from proxyprune.tracing.model_call import Call, ExampleInputs, TrainingCall, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged
from proxyprune.tracing.random_state import random_numbers_kept

_SECONDS = 5.0
"""Time in which submodules are tried for an error message."""


def inputs_of(model: nn.Module, example_inputs: Call, name: str) -> ExampleInputs:
    """Return what a submodule receives in one run of the model, as example inputs for that submodule alone.

    With them a part can be pruned where the whole cannot be traced:

        inputs = proxyprune.inputs_of(model, example_inputs, "backbone")
        result = proxyprune.prune(model.backbone, inputs)
        model.backbone = result.model

    Args:
        model: The whole network, with weights; it is not changed.
        example_inputs: As for `trace`, for the whole network.
        name: Qualified name of the submodule. If it runs several times, the first call counts.

    Returns:
        A tuple of arguments, or a dict if the call names some of them.

    Raises:
        UnknownNameError: If the model has no such submodule.
        InputError: If the submodule does not run on these inputs, or its arguments cannot be named.
    """
    if name not in dict(model.named_modules()):
        raise UnknownNameError(f"The model ({type(model).__name__}) has no submodule '{name}'; see model.named_modules().")
    part = model.get_submodule(name)
    calls = _first_calls(model, example_inputs, {name: part})
    if name not in calls:
        raise InputError(f"Submodule '{name}' ({type(part).__name__}) does not run on these example inputs.")
    return _as_example_inputs(part, *calls[name])


class _Seen(RunAborted):
    """Ends a run when every part that was asked for has been called."""


def _first_calls(
    model: nn.Module, example_inputs: Call, parts: Mapping[str, nn.Module]
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Run the model and return copies of the arguments of each part's first call."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls:
                calls[name] = mapped(args, _copy), mapped(kwargs, _copy)
            if len(calls) == len(parts):
                raise _Seen

        return note

    args, kwargs = call_arguments(on_device_of(model, example_inputs))
    training = isinstance(example_inputs, TrainingCall)
    handles = [part.register_forward_pre_hook(watch(name), with_kwargs=True) for name, part in parts.items()]
    try:
        with unchanged(model), random_numbers_kept(), evaluation(model, training=training):
            model(*mapped(args, Tensor.clone), **mapped(kwargs, Tensor.clone))
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _as_example_inputs(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExampleInputs:
    if not kwargs:
        return args
    if not args:
        return kwargs
    bound = inspect.signature(part.forward).bind(*args, **kwargs)
    if any(kind.kind is inspect.Parameter.VAR_POSITIONAL for kind in bound.signature.parameters.values()):
        raise InputError(
            f"The call of {type(part).__name__} mixes named arguments with a list of positional ones, which example inputs cannot hold. "
            "Trace a submodule of it, or the module around it."
        )
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named


Follows = Callable[[nn.Module, ExampleInputs], bool]
"""True if a module can be traced on these inputs."""


def traceable_part(model: nn.Module, example_inputs: Call, follows: Follows) -> str | None:
    """Return the name of the largest submodule that can be traced alone, or None if none is found in a few seconds.

    Args:
        model: A network whose forward runs.
        example_inputs: What it runs on.
        follows: Tries to trace a submodule.
    """
    started = time.monotonic()
    waiting = _children(model, "")
    while waiting and time.monotonic() - started < _SECONDS:
        _, name = heapq.heappop(waiting)
        part = model.get_submodule(name)
        try:
            found = follows(part, inputs_of(model, example_inputs, name))
        except Exception:  # noqa: BLE001  a part that does not run alone is no suggestion
            found = False
        if found:
            return name
        for entry in _children(part, name):
            heapq.heappush(waiting, entry)
    return None


def _children(module: nn.Module, name: str) -> list[tuple[int, str]]:
    """Children that hold parameters, the largest first."""
    sizes = [(sum(p.numel() for p in child.parameters()), f"{name}.{key}" if name else key) for key, child in module.named_children()]
    return sorted((-size, child) for size, child in sizes if size)


def how_to_prune(name: str, kind: str) -> str:
    """Return a sentence and the lines of code that prune a part and put it back."""
    simple = all(part.isidentifier() for part in name.split("."))
    part = f"model.{name}" if simple else f'model.get_submodule("{name}")'
    put_back = f"{part} = result.model" if simple else f'model.set_submodule("{name}", result.model)'
    return (
        f"The largest part that can be traced alone is '{name}' ({kind}). Prune it, and put it back:\n"
        f'    inputs = proxyprune.inputs_of(model, example_inputs, "{name}")\n'
        f"    result = proxyprune.prune({part}, inputs)\n"
        f"    {put_back}"
    )
