"""Effects of each number of a config on the network: found by building networks with changed values, without tables of classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

from proxyprune.standard.blueprint import Attribute, Blueprint, Path, attributes_of, shapes_of, value_at

Dim = tuple[str, int]
"""Parameter or buffer, and one of its dimensions."""

_KEPT_BLUEPRINTS = 16


@dataclass(frozen=True)
class Reaction:
    """The effect of one number of a config.

    Attributes:
        value: Its value in the unpruned network.
        slopes: Dimension -> change of its size when the value grows by one; dimensions that do not react are left out.
        attributes: Numbers that modules hold and that change with the value.
        lists: Module lists that have one item for each unit of the value.
        items: Length of these lists in the unpruned network.
    """

    value: int
    slopes: Mapping[Dim, Fraction]
    attributes: frozenset[Attribute]
    lists: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Family:
    """The networks that a class builds from configs near a given one.

    Attributes:
        blueprint: Class and config; numbers that may also be lists of one number a level are lists here.
        shapes: Shapes of the unpruned network.
        attributes: Numbers in the modules of the unpruned network.
        computed: Buffers that the class computes and that no file of weights holds.
        reactions: Effect of every number that has one, in the order of the config.
    """

    blueprint: Blueprint
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    attributes: Mapping[Attribute, Any] = field(repr=False)
    computed: frozenset[str] = field(repr=False)
    reactions: Mapping[Path, Reaction] = field(default_factory=dict, repr=False)

    @cached_property
    def reacting(self) -> dict[Dim, tuple[Path, ...]]:
        """The numbers that change each dimension."""
        found: dict[Dim, list[Path]] = {}
        for path, reaction in self.reactions.items():
            for dim in reaction.slopes:
                found.setdefault(dim, []).append(path)
        return {dim: tuple(paths) for dim, paths in found.items()}

    @cached_property
    def values(self) -> dict[Path, int]:
        """The whole numbers from 2 up in the config."""
        return dict(numbers(self.blueprint.config))

    @cached_property
    def layer_counts(self) -> dict[Path, Reaction]:
        """The numbers that say how many items a module list has."""
        return {path: reaction for path, reaction in self.reactions.items() if reaction.lists}

    @cached_property
    def hidden(self) -> dict[Path, Reaction]:
        """The numbers that change attributes of modules and no shape, such as a count of heads."""
        return {
            path: reaction
            for path, reaction in self.reactions.items()
            if reaction.attributes and not reaction.slopes and not reaction.lists
        }


@lru_cache(maxsize=_KEPT_BLUEPRINTS)
def family_of(blueprint: Blueprint) -> Family | None:
    """Return the family of a blueprint; None if the class cannot be built from the config."""
    dense = blueprint.try_build()
    if dense is None:
        return None
    shapes = shapes_of(dense)
    family = Family(blueprint, shapes, attributes_of(dense), frozenset(shapes) - frozenset(dense.state_dict()))
    family = _with_lists(family)
    reactions = {}
    for path, value in numbers(family.blueprint.config):
        reaction = _reaction(family, path, value)
        if reaction is not None:
            reactions[path] = reaction
    return replace(family, reactions=reactions)


def numbers(content: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Yield the whole numbers from 2 up in a config, with their paths."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(key, str) and key.startswith("_"):
            continue
        if type(value) is int and value >= 2:
            yield (*path, key), value
        elif isinstance(value, dict) or (isinstance(value, list) and all(type(item) is int for item in value)):
            yield from numbers(value, (*path, key))


def _with_lists(family: Family) -> Family:
    """Write a number as a list of one number a level if the class takes it in this form and builds the same network."""
    config = family.blueprint.config
    lengths = {len(value) for value in config.values() if isinstance(value, list) and len(value) > 1 and type(value[0]) is int}
    for length in sorted(lengths):
        for key, value in config.items():
            if type(value) is int and value >= 2:
                candidate = family.blueprint.with_values({(key,): [value] * length})
                built = candidate.try_build()
                if built is not None and shapes_of(built) == family.shapes and _same_numbers(attributes_of(built), family.attributes):
                    uneven = candidate.with_values({(key, 0): 2 * value}).try_build()
                    if uneven is not None and _differs(uneven, family):
                        family = replace(family, blueprint=candidate)
    return family


def _same_numbers(one: Mapping[Attribute, Any], other: Mapping[Attribute, Any]) -> bool:
    """Return True if two networks hold the same numbers; the copy of a list in the root module does not count."""
    keys = {key for key in (*one, *other) if key[0]}
    return all(one.get(key) == other.get(key) for key in keys)


def _differs(built: Any, family: Family) -> bool:
    return shapes_of(built) != family.shapes or not _same_numbers(attributes_of(built), family.attributes)


def _reaction(family: Family, path: Path, value: int) -> Reaction | None:
    """Build with two and three times the value, which keeps what divides it; with other values if the class rejects these."""
    for factors in ((2, 3), (3, 4), (Fraction(1, 2), 2), (2,), (Fraction(1, 2),)):
        changed = [int(value * factor) for factor in factors if (value * factor) % 1 == 0]
        built = [family.blueprint.with_values({path: number}).try_build() for number in changed]
        networks = [(number - value, network) for number, network in zip(changed, built, strict=True) if network is not None]
        if len(networks) == len(factors):
            break
    else:
        return _layer_count(family, path, value, frozenset())
    step, network = networks[0]
    shapes, attributes = shapes_of(network), attributes_of(network)
    slopes = _slopes(family.shapes, shapes, step)
    for step, further in networks[1:]:  # a value that happens to equal another one may take a projection away
        slopes = _slopes({name: shape for name, shape in family.shapes.items() if name not in shapes}, shapes_of(further), step) | slopes
    reacting = frozenset(key for key, number in family.attributes.items() if key in attributes and attributes[key] != number)
    added = [name for name in shapes if name not in family.shapes]
    if added or len(shapes) < len(family.shapes):
        counted = _layer_count(family, path, value, reacting)
        if counted is not None:
            return counted
    return Reaction(value, slopes, reacting) if slopes or reacting else None


def _slopes(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]], step: int) -> dict[Dim, Fraction]:
    return {
        (name, dim): Fraction(after[name][dim] - size, step)
        for name, shape in before.items()
        if name in after and len(after[name]) == len(shape)
        for dim, size in enumerate(shape)
        if after[name][dim] != size
    }


def _layer_count(family: Family, path: Path, value: int, reacting: frozenset[Attribute]) -> Reaction | None:
    """Build with one less: a count of layers takes away the last item of module lists, and nothing else."""
    network = family.blueprint.with_values({path: value - 1}).try_build()
    if network is None:
        network = family.blueprint.with_values({path: value - 1, **shortened_lists(family, path, [value - 1])}).try_build()
    if network is None:
        return None
    shapes = shapes_of(network)
    gone = [name for name in family.shapes if name not in shapes]
    if not gone or any(shapes[name] != family.shapes.get(name) for name in shapes):
        return None
    lists: dict[str, int] = {}
    for name in gone:
        owner = _last_item(name, shapes, family.shapes)
        if owner is None:
            return None
        lists[owner[0]] = owner[1] + 1
    return Reaction(value, {}, reacting, lists)


def _last_item(name: str, shapes: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the outermost list whose last item holds a name and is gone as a whole."""
    for match in re.finditer(r"\.(\d+)\.", name):
        container, index = name[: match.start()], int(match.group(1))
        item = f"{container}.{index}."
        if any(other.startswith(item) for other in shapes):
            continue
        if any(other.startswith(f"{container}.{index + 1}.") for other in before):
            return None
        return container, index
    return None


def shortened_lists(family: Family, path: Path, gone: list[int]) -> dict[Path, Any]:
    """Return the lists beside a count of layers that have one entry a layer, without the entries of the layers that leave."""
    beside = value_at(family.blueprint.config, path[:-1]) if len(path) > 1 else family.blueprint.config
    count = value_at(family.blueprint.config, path)
    if not isinstance(beside, dict):
        return {}
    return {
        (*path[:-1], key): [item for index, item in enumerate(entries) if index not in gone]
        for key, entries in beside.items()
        if isinstance(entries, list) and len(entries) == count and not key.startswith("_")
    }
