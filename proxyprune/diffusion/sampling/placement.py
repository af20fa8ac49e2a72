"""Networks on a device and in a dtype: all of them move, or all of them stay bit for bit as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Trial = Callable[[nn.Module], object]


def target_of(args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    """Return device and dtype from the arguments of `to`, as diffusers takes them.

    Args:
        args: A device, a dtype, or both in any order.
        kwargs: `device`, and `dtype` or `torch_dtype`; `silence_dtype_warnings` is accepted and has no effect.

    Raises:
        InputError: If an argument is none of these, or one of them is given twice.
    """
    devices: list[torch.device] = []
    dtypes: list[torch.dtype] = []
    for value in (*args, *(kwargs.get(name) for name in ("device", "dtype", "torch_dtype"))):
        if isinstance(value, torch.dtype):
            dtypes.append(value)
        elif isinstance(value, str | int | torch.device):
            devices.append(device_of(value))
        elif value is not None:
            raise InputError(f"to() takes a device and a dtype, found {value!r}.")
    if unknown := sorted(set(kwargs) - {"device", "dtype", "torch_dtype", "silence_dtype_warnings"}):
        raise InputError(f"to() takes device and dtype, found {', '.join(unknown)}.")
    if len(devices) > 1 or len(dtypes) > 1:
        raise InputError("to() takes one device and one dtype, found several.")
    return next(iter(devices), None), checked_dtype(next(iter(dtypes), None))


def device_of(value: str | int | torch.device) -> torch.device:
    """Return a device.

    Raises:
        InputError: If torch has none of this name.
    """
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise InputError(f"torch has no device {value!r}: {str(error).splitlines()[0]}") from error


def checked_dtype(dtype: Any) -> torch.dtype | None:
    """Return a dtype that networks can run in, or None.

    Raises:
        InputError: If it is another one, or no dtype of torch.
    """
    if dtype is None or dtype in DTYPES:
        found: torch.dtype | None = dtype
        return found
    raise InputError(f"Experts run in {', '.join(map(str, DTYPES))}; found {dtype!r}.")


def move(models: Iterable[nn.Module], device: torch.device, dtype: torch.dtype | None, trial: Trial | None = None) -> None:
    """Move networks to a device and a dtype. If one cannot be moved, or fails its trial, all of them stay as they were.

    Args:
        models: The networks.
        device: Where they go.
        dtype: Of their weights, or None to keep what they have.
        trial: Runs a network after the move.

    Raises:
        InputError: If the device holds no values, is not there, has no room, or does not run the networks in this dtype.
    """
    if device.type == "meta":
        raise InputError("Experts cannot move to the device 'meta': it holds no weights, so they would be lost.")
    models = list(models)
    place = f"'{device}'" if dtype is None else f"'{device}' in {dtype}"
    with _restored(models):
        try:
            torch.empty(0, device=device)
            for model in models:
                place_network(model, device, dtype)
            if trial is not None:
                for model in models:
                    trial(model)
        except Exception as error:  # networks may be the user's, so anything may come out of them
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise InputError(f"Experts cannot move to {place}: {reason}. They stay as they were.") from error


def place_network(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Move one network; layers that a class of diffusers keeps in float32 stay in float32, as in its `from_pretrained`.

    Args:
        model: The network.
        device: Where it goes.
        dtype: Of its weights, or None to keep what it has.

    Returns:
        The same network.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not kept or dtype is None:
        return nn.Module.to(model, device=device, dtype=dtype)  # that of diffusers warns about layers which are not there
    nn.Module.to(model, device=device)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return model


@contextmanager
def _restored(models: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules back their parameters and buffers if the block raises; nothing is rounded on the way."""
    parameters: list[tuple[nn.Module, dict[str, nn.Parameter | None], list[tuple[nn.Parameter, Tensor]]]] = []
    buffers: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
    for module in (module for model in models for module in model.modules()):
        own = dict(module._parameters)
        parameters.append((module, own, [(value, value.data) for value in own.values() if value is not None]))
        buffers.append((module, dict(module._buffers)))
    try:
        yield
    except BaseException:
        for module, own, values in parameters:
            for parameter, data in values:
                parameter.data = data
            module._parameters.update(own)
        for module, kept in buffers:
            module._buffers.update(kept)
        raise
