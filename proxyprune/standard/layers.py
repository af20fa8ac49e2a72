"""Layers that a config counts: names after some of them leave, the values of the config that follow, and the layers that may leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from torch import nn

from proxyprune.standard.blueprint import Attribute, Path, settings_of, shapes_of
from proxyprune.standard.reactions import Family, Reaction, beside
from proxyprune.tracing.names import is_inside

Containers = list[tuple[str, list[int]]]
"""Module lists, each with the indices of the layers that left."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Place:
    """The place of a name in a list of layers: the list, the index of the layer, and the rest of the name with its dot, or ""."""

    container: str
    index: int
    rest: str


def moved_up(name: str, containers: Containers) -> str:
    """Return the name after the layers behind removed ones moved up."""
    for container, indices in containers:
        place = _place(name, (container,))
        if place is not None:
            name = f"{container}.{place.index - sum(1 for other in indices if other < place.index)}{place.rest}"
    return name


def without_layers(entries: Mapping[str, Value], containers: Containers) -> dict[str, Value]:
    """Return entries by name after whole layers left."""
    removed = tuple(f"{container}.{index}." for container, indices in containers for index in indices)
    return {moved_up(name, containers): entry for name, entry in entries.items() if not (removed and name.startswith(removed))}


def followed(family: Family, path: Path, gone: list[int]) -> dict[Path, Any]:
    """Return the values of a config without some layers: their count, lists with an entry a layer, and lists of layers' indices."""
    reaction = family.reactions[path]
    values: dict[Path, Any] = {path: reaction.value - len(gone)}
    for key, entries in beside(family.blueprint.config, path).items():
        if key in reaction.per_layer:
            values[*path[:-1], key] = [entry for index, entry in enumerate(entries) if index not in gone]
        elif key in reaction.indices:
            values[*path[:-1], key] = [index - sum(1 for other in gone if other < index) for index in entries if index not in gone]
    return values


def same_shapes(family: Family, built: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Return True if a built network has the expected shapes.

    Buffers that the class computes may be absent: layers that left may have been the only ones that use them.
    """
    return dict(built) == {name: shape for name, shape in expected.items() if name in built or name not in family.computed}


@lru_cache(maxsize=4)
def layers_that_can_leave(family: Family) -> Mapping[Path, tuple[int, ...]]:
    """Return the indices of the layers without which the class builds all others as they were, by the number that counts them."""
    known: dict[str, nn.Module | None] = {}
    dense = settings_of(family.blueprint.build())
    found = {}
    for path, reaction in family.layer_counts.items():
        if len(set(reaction.lists.values())) == 1:
            items = next(iter(reaction.lists.values()))
            numbers = _numbering(dense, reaction)
            kept = {
                (module, key): value
                for (module, key), value in dense.items()
                if (place := _place(module, reaction.lists)) is not None and (place.container, place.rest, key) not in numbers
            }
            found[path] = tuple(index for index in range(items) if _can_leave(family, path, index, kept, known))
    return found


def _can_leave(family: Family, path: Path, index: int, dense: Mapping[Attribute, Any], known: dict[str, nn.Module | None]) -> bool:
    """Build without one layer, and compare shapes and settings of all others with those that they had."""
    blueprint = family.blueprint.with_values(followed(family, path, [index]))
    if blueprint.text not in known:
        known[blueprint.text] = blueprint.try_build()
    built = known[blueprint.text]
    containers = [(container, [index]) for container in family.reactions[path].lists]
    if built is None or not same_shapes(family, shapes_of(built), without_layers(family.shapes, containers)):
        return False
    now = settings_of(built)
    gone = [f"{container}.{index}" for container, _ in containers]
    return all(
        now.get((moved_up(module, containers), key), value) == value
        for (module, key), value in dense.items()
        if not any(is_inside(module, layer) for layer in gone)
    )


def _numbering(settings: Mapping[Attribute, Any], reaction: Reaction) -> frozenset[tuple[str, str, str]]:
    """Return the settings of layers that rise by one from each layer to the next: their numbers."""
    offsets: dict[tuple[str, str, str], set[int | None]] = {}
    for (module, key), value in settings.items():
        place = _place(module, reaction.lists)
        if place is not None:
            offset = value - place.index if type(value) is int else None
            offsets.setdefault((place.container, place.rest, key), set()).add(offset)
    return frozenset(attribute for attribute, found in offsets.items() if len(found) == 1 and None not in found)


def _place(name: str, containers: Iterable[str]) -> _Place | None:
    """Return the place of a module or tensor in the first list that holds it, or None."""
    for container in containers:
        if name.startswith(f"{container}."):
            index, dot, rest = name[len(container) + 1 :].partition(".")
            return _Place(container, int(index), f"{dot}{rest}") if index.isdigit() else None
    return None
