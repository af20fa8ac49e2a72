"""Run ops on tensors without data, once for each layout of the arguments."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.support.nested import tensors_of

_META = torch.device("meta")
_COMPARED = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Types of plain arguments and results."""


class EmptyOps:
    """Ops on the meta device, with the layouts of the results that are known already. It may serve many runs."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an op with its result on the meta device, also if it makes a tensor of nothing."""
        takes_device = kwargs.get("device") is None and any(argument.name == "device" for argument in func._schema.arguments)
        if takes_device and next(tensors_of(args), None) is None:
            kwargs = {**kwargs, "device": _META}
        return self.repeat(func, args, kwargs)

    def repeat(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an op, or make its results anew where the same was run before on tensors of the same layout."""
        schema = func._schema
        if schema.is_mutable or any(returned.alias_info is not None for returned in schema.returns):
            return run_once(func, args, kwargs)
        try:
            key = (func, layout_of(args), layout_of(tuple(sorted(kwargs.items()))))
            layouts = self.known.get(key)
        except TypeError:  # an argument that cannot be a key
            return run_once(func, args, kwargs)
        if layouts is not None:
            return tensor_like(layouts)
        result = run_once(func, args, kwargs)
        given, made = list(tensors_of((args, kwargs))), list(tensors_of(result))
        has_values = any(not tensor.is_meta for tensor in (*given, *made))
        handed_on = any(tensor is other for tensor in made for other in given)  # by an op that has nothing to do
        if not has_values and not handed_on:
            with contextlib.suppress(TypeError):  # the result is an object of torch, which may be another one each time
                self.known[key] = layout_of(result)
        return result


def run_once(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an op, also on empty tensors of a type for which torch has a kernel but no rule of shapes."""
    without_data = func is torch.ops.aten._grouped_mm.default and (args[0].is_meta or isinstance(args[0], FakeTensor))
    if without_data and (args[0].dim(), args[1].dim()) == (2, 3):
        return args[0].new_empty(args[0].shape[0], args[1].shape[2], dtype=kwargs.get("out_dtype"))
    return func(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape, strides, type and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def layout_of(value: Any) -> Any:
    """Return a value that can be compared, with layouts for tensors.

    Raises:
        TypeError: If a value is neither a tensor nor plain, such as the handle of a profiler, which has no comparison.
    """
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, list | tuple):
        return tuple(layout_of(item) for item in value)
    if not isinstance(value, _COMPARED):
        raise TypeError(f"{type(value).__name__} cannot be compared.")
    return type(value), value  # 1, 1.0 and True are one key, and not one argument


def tensor_like(layout: Any) -> Any:
    """Return empty tensors of these layouts: the inverse of `layout_of`."""
    if isinstance(layout, Layout):
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=layout.device)
    if len(layout) == 2 and isinstance(layout[0], type):
        return layout[1]
    return tuple(tensor_like(item) for item in layout)


def on_meta(value: Any) -> Any:
    """Return arguments with every device replaced: what a forward makes, or moves, is empty too."""
    if isinstance(value, torch.device):
        return _META
    if isinstance(value, list | tuple):
        return type(value)(on_meta(item) for item in value)
    return value


def emptied(value: Any) -> Any:
    """Return a value with tensors replaced by empty ones of the same layout, and devices by the meta device; numbers stay."""
    if isinstance(value, Tensor):
        return value if value.is_meta else torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
    if isinstance(value, torch.device):
        return _META
    if isinstance(value, list | tuple):
        return type(value)(emptied(item) for item in value)
    return value
