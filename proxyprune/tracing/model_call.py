"""The call of a model in order to read it: its example inputs, its mode, and its outputs as tensors."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from proxyprune.errors import InputError
from proxyprune.support.nested import tensors_of
from proxyprune.tracing.names import named_state

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class TrainingCall:
    """A further example call in training mode, for `also`: auxiliary heads and mask tokens often run in no other.

    Attributes:
        inputs: As for the first call. Batch norm needs more than one value per channel.
    """

    inputs: ExampleInputs


Call = ExampleInputs | TrainingCall


class TensorOutputs(nn.Module):
    """A model whose outputs are reduced to the tensors they hold, in a fixed order; what is no tensor is dropped."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Run the model and flatten what it returns."""
        return tuple(tensors_of(self.model(*args, **kwargs)))


def call_arguments(example_inputs: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Raises:
        InputError: If they are neither a tensor, a tuple or list, nor a mapping with string keys.
    """
    if isinstance(example_inputs, TrainingCall):
        return call_arguments(example_inputs.inputs)
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        if not all(isinstance(key, str) for key in example_inputs):
            raise InputError("example_inputs is a mapping with keys that are not strings; use the forward's argument names as keys.")
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    raise InputError(
        f"example_inputs must be a tensor, a tuple of arguments, or a dict of named arguments; found {type(example_inputs).__name__}."
    )


@contextlib.contextmanager
def evaluation(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Eval mode (or training mode), no autograd and no fused attention inside; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    _set_modes((module, training) for module, _ in modes)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        _set_modes(modes)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Set the mode of each module; modules that have it already are skipped, because setting an attribute of a module is slow."""
    for module, mode in modes:
        if module.training is not mode:
            module.training = mode


@contextlib.contextmanager
def as_if_exporting() -> Iterator[None]:
    """Let code that asks `torch.compiler.is_exporting()` take the branch that it took when the model was traced."""
    names = [name for name in ("_is_compiling_flag", "_is_exporting_flag") if hasattr(torch.compiler, name)]
    before = {name: getattr(torch.compiler, name) for name in names}
    for name in names:
        setattr(torch.compiler, name, True)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)


def on_device_of(model: nn.Module, value: Any) -> Any:
    """Move example inputs to where the weights are: a fake mode, the meta device, or a real device."""
    reference = next((tensor for _, tensor in named_state(model)), None)
    if reference is None:
        return value
    mode: FakeTensorMode | None = reference.fake_mode if isinstance(reference, FakeTensor) else None

    def move(item: Any) -> Any:
        if isinstance(item, FakeTensor):
            return item
        if isinstance(item, TrainingCall):
            return TrainingCall(move(item.inputs))
        if isinstance(item, Tensor):
            return mode.from_tensor(item) if mode is not None else item.to(reference.device)
        if isinstance(item, Mapping):
            return {key: move(entry) for key, entry in item.items()}
        if type(item) in (list, tuple):
            return type(item)(move(entry) for entry in item)
        return item

    return move(value)


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Qualified name of the innermost module of `model` on the traceback of `error`; "" when none is."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = names[id(owner)]
    return found
