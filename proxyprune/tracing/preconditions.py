"""Networks that must be unwrapped, initialised or left unquantised before they are traced."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from proxyprune.errors import InputError

_COMPILED = "_orig_mod"
"""The child that holds the network in what `torch.compile` returns."""

_SHARDED = "_fsdp_wrapped_module"
"""The child that holds the network in FullyShardedDataParallel."""


def check_traceable(model: nn.Module) -> None:
    """Raise if a network cannot be traced as it is.

    Raises:
        InputError: If it is wrapped for compilation or distribution, scripted, uninitialised or quantised.
    """
    for name, module in model.named_modules():
        _check_module(module, name)
    for name, tensor in _state(model):
        _check_tensor(name, tensor)


def _check_module(module: nn.Module, name: str) -> None:
    kind = type(module).__name__
    where = f"Module '{name}' ({kind})" if name else f"The model ({kind})"
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{where} is TorchScript and holds no Python forward that could be traced and cut. Use the module it was made from."
        )
    for child, wrapped in ((_COMPILED, "compiled"), (_SHARDED, "sharded")):
        if child in module._modules:
            raise InputError(f"{where} is a {wrapped} wrapper. Prune {_child(name, child)} and wrap the pruned network again.")
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise InputError(f"{where} is a distributed wrapper. Prune {_child(name, 'module')} and wrap the pruned network again.")
    packed = [key for key, value in vars(module).items() if isinstance(value, torch.ScriptObject)]
    if packed:
        raise InputError(
            f"{where} holds packed weights in '{packed[0]}', as quantised layers do; these cannot be cut. "
            "Prune the network before it is quantised."
        )


def _child(name: str, child: str) -> str:
    return f"model.{name}.{child}" if name else f"model.{child}"


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _check_tensor(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise InputError(f"'{name}' has no shape yet: its lazy layer has not been run. Call the model once on real inputs, then prune it.")
    subclass = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not isinstance(tensor, FakeTensor)
    if tensor.is_quantized or subclass:
        found = f"is a {type(tensor).__name__}" if subclass else "is quantised"
        raise InputError(
            f"'{name}' {found}; only plain tensors can be cut. "
            "Prune the network before it is quantised or distributed over devices, or convert it back to plain tensors."
        )
