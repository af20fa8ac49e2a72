"""Tensors inside nested containers: what a network takes and gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from torch import Tensor

Leaf = TypeVar("Leaf")


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, mappings and dataclasses, in order; caches and other objects are passed over."""
    return leaves_of(value, Tensor)


def leaves_of(value: Any, kind: type[Leaf]) -> Iterator[Leaf]:
    """Yield the values of one class, as `tensors_of` yields tensors."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves_of(item, kind)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves_of(item, kind)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from leaves_of(getattr(value, entry.name), kind)
    elif isinstance(sample := getattr(value, "sample", None), kind):
        yield sample


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a nested value with its tensors changed; containers keep their type, whatever else is inside stays."""
    return mapped_leaves(value, Tensor, change)


def mapped_leaves(value: Any, kind: type[Leaf], change: Callable[[Leaf], Any]) -> Any:
    """Return a copy of a nested value with its values of one class changed, as `mapped` changes tensors."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value) if isinstance(value, MutableMapping) else {}
        for key, item in value.items():
            changed[key] = mapped_leaves(item, kind, change)
        return changed
    if isinstance(value, list | tuple):
        items = [mapped_leaves(item, kind, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = ((entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value))
        return dataclasses.replace(value, **{name: mapped_leaves(item, kind, change) for name, item in entries})
    return value
