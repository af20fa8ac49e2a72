"""Renumber the layers of a stack of which whole layers were removed, where their numbers choose a slot of a cache.

Layers of a decoder hold their position, and a cache keeps one slot for each. Without the first layer nothing fills the first slot, which
states how long the sequence is. That an attribute equals a position proves nothing. The attribute is exchanged between layers of the
unpruned model: if the slots of the cache are exchanged with it, and the result stays, it chooses the slot and does nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.support.nested import tensors_of
from proxyprune.surgery.decoding import CachedPass, Decoding
from proxyprune.surgery.surgery import AttributeChange
from proxyprune.tracing.module_state import plain_attributes, unchanged
from proxyprune.tracing.names import is_inside

_DEPTH = 4
_Slots = Mapping[str, Sequence[Any]]
"""Place within a cache -> the content of its slots, one for each layer."""


@dataclass(frozen=True)
class Position:
    """An attribute that equals the position of its layer in a stack, in every layer that has it.

    Attributes:
        stack: Qualified name of the stack.
        inner: Name of the holder within its layer.
        attribute: Name of the attribute.
        holders: Position -> qualified name of the module that holds the attribute.
    """

    stack: str
    inner: str
    attribute: str
    holders: Mapping[int, str]


def position_changes(model: nn.Module, removed: Collection[str], decoding: Decoding) -> tuple[AttributeChange, ...]:
    """Return the new positions of the layers that stay; () if no attribute chooses slots, or every layer keeps its slot.

    A layer takes the first free slot of the kind that it had: a layer with a sliding window stays with such a slot.

    Args:
        model: The unpruned model; left as it was.
        removed: Removed blocks.
        decoding: How the model decodes.
    """
    changes: list[AttributeChange] = []
    for stack, length in _stacks(model, removed):
        base = decoding.filled(model)
        slots = dict(_slots(base.cache, length, "", _DEPTH))
        chosen: dict[frozenset[str], list[Position]] = {}
        for position in _positions(model, stack, length):
            if places := _places_chosen(model, position, decoding, base, slots):
                chosen.setdefault(places, []).append(position)
        for places, positions in chosen.items():
            changes += _renumbered(positions, _kinds(slots, places, length), removed)
    return tuple(changes)


def _stacks(model: nn.Module, removed: Collection[str]) -> Iterator[tuple[str, int]]:
    """Yield modules whose children are numbered from 0, of which a removed block is a layer or a part of one; with their length."""
    for name, module in model.named_modules():
        children = [child for child, _ in module.named_children()]
        layers = [f"{name}.{child}".lstrip(".") for child in children]
        numbered = len(children) > 1 and children == [str(number) for number in range(len(children))]
        if numbered and any(is_inside(block, layer) for layer in layers for block in removed):
            yield name, len(children)


def _positions(model: nn.Module, stack: str, length: int) -> Iterator[Position]:
    """Yield attributes that equal the position in every layer that has them, and that at least two layers have."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    values: dict[tuple[str, str], set[bool]] = {}
    for number in range(length):
        layer = f"{stack}.{number}".lstrip(".")
        for inner, module in model.get_submodule(layer).named_modules():
            for attribute, value in vars(module).items():
                if type(value) is int:
                    found.setdefault((inner, attribute), {})[number] = f"{layer}.{inner}".rstrip(".")
                    values.setdefault((inner, attribute), set()).add(value == number)
    for (inner, attribute), holders in found.items():
        if values[inner, attribute] == {True} and len(holders) > 1:
            yield Position(stack, inner, attribute, holders)


def _places_chosen(model: nn.Module, position: Position, decoding: Decoding, base: CachedPass, slots: _Slots) -> frozenset[str]:
    """Return the places of the cache whose slots an attribute chooses; none if it changes the result, or no slot moves with it."""
    places = frozenset(slots)
    order = _exchanged(_kinds(slots, places, max(map(len, slots.values()), default=0)), sorted(position.holders))
    if all(new == old for old, new in order.items()):
        return frozenset()
    try:
        with unchanged(model):
            for old, holder in position.holders.items():
                setattr(model.get_submodule(holder), position.attribute, order[old])
            found = decoding.filled(model)
    except Exception:  # noqa: BLE001  a forward that rejects the exchange uses the attribute for something else
        return frozenset()
    if found.result.shape != base.result.shape or not torch.allclose(found.result, base.result, rtol=1e-4, atol=1e-5):
        return frozenset()
    moved = dict(_slots(found.cache, max(map(len, slots.values())), "", _DEPTH))
    return frozenset(place for place, content in slots.items() if _follow(content, moved.get(place, ()), order))


def _exchanged(kinds: Sequence[Any], positions: Sequence[int]) -> dict[int, int]:
    """Return another position for each: those with slots of one kind change places."""
    order: dict[int, int] = {}
    for kind in dict.fromkeys(kinds[position] for position in positions if position < len(kinds)):
        alike = [position for position in positions if position < len(kinds) and kinds[position] == kind]
        order.update(zip(alike, reversed(alike), strict=True))
    return {position: order.get(position, position) for position in positions}


def _follow(before: Sequence[Any], after: Sequence[Any], order: Mapping[int, int]) -> bool:
    """Return True if the content of every slot is where the order puts it, and some content moved."""
    if len(before) != len(after):
        return False
    pairs = [(list(_held(before[old])), list(_held(after[new])), list(_held(after[old]))) for old, new in order.items()]
    return all(_equal(one, other) for one, other, _ in pairs) and any(one and not _equal(one, same) for one, _, same in pairs)


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)
        for one, other in zip(some, others, strict=True)
    )


def _renumbered(positions: Sequence[Position], kinds: Sequence[Any], removed: Collection[str]) -> Iterator[AttributeChange]:
    """Yield changes of attributes that choose the same slots, layer by layer."""
    layers = sorted({number for position in positions for number in position.holders})
    staying = {number for position in positions for number, holder in position.holders.items() if not _is_removed(holder, removed)}
    for kind in dict.fromkeys(kinds[number] for number in layers):
        free = [number for number in layers if kinds[number] == kind]
        for new, old in zip(free, (number for number in free if number in staying), strict=False):
            for position in positions:
                holder = position.holders.get(old)
                if holder is not None and new != old and not _is_removed(holder, removed):
                    yield AttributeChange(holder, (position.attribute,), old, new)


def _is_removed(module: str, removed: Collection[str]) -> bool:
    return any(is_inside(module, block) for block in removed)


def _kinds(slots: _Slots, places: Collection[str], length: int) -> list[Any]:
    """Return the kind of every slot: what it holds, values of tensors left out."""
    return [tuple(_kind(content[number], _DEPTH) for place, content in slots.items() if place in places) for number in range(length)]


def _kind(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, list | tuple):
        return tuple(_kind(item, depth - 1) for item in value) if depth else None
    if isinstance(value, dict):
        return tuple((str(key), _kind(item, depth - 1)) for key, item in value.items()) if depth else None
    return type(value).__name__, _kind(plain_attributes(value) or {}, depth - 1) if depth else None


def _held(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Yield the tensors of a slot, inside objects too."""
    attributes = None if isinstance(value, Tensor | list | tuple | dict) else plain_attributes(value)
    if attributes is None:
        yield from tensors_of(value)
    elif depth:
        for item in attributes.values():
            yield from _held(item, depth - 1)


def _slots(value: Any, length: int, place: str, depth: int) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield places in a cache with as many slots as a stack has layers: sequences, dicts by position, a dimension of a tensor."""
    if isinstance(value, Tensor):
        dims = [dim for dim, size in enumerate(value.shape) if size == length]
        if len(dims) == 1:
            yield place, value.unbind(dims[0])
        return
    if isinstance(value, list | tuple) and len(value) == length:
        yield place, value
        return
    if isinstance(value, dict) and set(value) == set(range(length)):
        yield place, [value[number] for number in range(length)]
        return
    items: Any = enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        items = (value if isinstance(value, dict) else plain_attributes(value) or {}).items()
    if depth:
        for key, item in items:
            yield from _slots(item, length, f"{place}.{key}", depth - 1)
