"""Tensors inside nested containers: what a network takes and gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Tensors inside nested tuples, lists, mappings and dataclasses, in order; caches and other objects are passed over."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from tensors_of(getattr(value, entry.name))
    elif isinstance(sample := getattr(value, "sample", None), Tensor):
        yield sample


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a nested value with its tensors changed; containers keep their type, whatever else is inside stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value) if isinstance(value, MutableMapping) else {}
        for key, item in value.items():
            changed[key] = mapped(item, change)
        return changed
    if isinstance(value, list | tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{entry.name: mapped(getattr(value, entry.name), change) for entry in dataclasses.fields(value)})
    return value
