"""Effects of each number of a config on the network: found by building networks with changed values, without tables of classes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

from proxyprune.standard.blueprint import Attribute, Blueprint, Path, attributes_of, settings_of, shapes_of, value_at

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
        lists: Module lists that have one item for each unit of the value, with their lengths in the unpruned network.
        per_layer: Lists beside the number in the config that have an entry for each layer.
        indices: Lists beside the number in the config that hold indices of layers.
    """

    value: int
    slopes: Mapping[Dim, Fraction]
    attributes: frozenset[Attribute]
    lists: Mapping[str, int] = field(default_factory=dict)
    per_layer: frozenset[str] = frozenset()
    indices: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Family:
    """The networks that a class builds from configs near a given one.

    Attributes:
        blueprint: Class and config. Numbers that may also be lists of one number a level are lists here, and numbers that the class
            computes from others are written out.
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
    family = _with_computed(_with_lists(family))
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


def _with_computed(family: Family) -> Family:
    """Write out the numbers that the class computes from others where the config has None, such as a feed-forward width of four times."""
    settings: dict[Attribute, Any] = {}
    probe = 2 * max((size for shape in family.shapes.values() for size in shape), default=1)
    for path in list(_absent(family.blueprint.config)):
        built = family.blueprint.with_values({path: probe}).try_build()
        if built is None:
            continue
        shapes = shapes_of(built)
        sizes = {
            family.shapes[name][dim]
            for name, dim in _slopes(family.shapes, shapes, probe)
            if shapes[name][dim] == probe and family.shapes[name][dim] >= 2
        }
        for size in sorted(sizes):
            candidate = family.blueprint.with_values({path: size})
            same = candidate.try_build()
            settings = settings or settings_of(family.blueprint.build())
            if same is not None and shapes_of(same) == family.shapes and _same_numbers(settings_of(same), settings):
                family = replace(family, blueprint=candidate)
                break
    return family


def _absent(content: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of the values in a config that are None."""
    for key, value in content.items():
        if value is None and not key.startswith("_"):
            yield (*path, key)
        elif isinstance(value, dict):
            yield from _absent(value, (*path, key))


def _same_numbers(one: Mapping[Attribute, Any], other: Mapping[Attribute, Any]) -> bool:
    """Return True if two networks hold the same attributes; copies of the config's values in the root module do not count."""
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
    lists = beside(family.blueprint.config, path)
    per_layer = [key for key, entries in lists.items() if len(entries) == value and _matters(family, (*path[:-1], key), entries[:-1])]
    for shortened in dict.fromkeys((tuple(per_layer), *itertools.combinations(per_layer, max(0, len(per_layer) - 1)), ())):
        network = family.blueprint.with_values({path: value - 1, **{(*path[:-1], key): lists[key][:-1] for key in shortened}}).try_build()
        containers = None if network is None else _without_last(family, shapes_of(network))
        if containers is not None:
            others = {key: entries for key, entries in lists.items() if key not in shortened}
            indices = frozenset(key for key, entries in others.items() if _are_indices(family, (*path[:-1], key), entries, value))
            return Reaction(value, {}, reacting, containers, frozenset(shortened), indices)
    return None


def _without_last(family: Family, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Return the lists that lost their last item, with the lengths that they had; None if anything else changed."""
    gone = [name for name in family.shapes if name not in shapes and name not in family.computed]
    if not gone or any(shapes[name] != family.shapes.get(name) for name in shapes):
        return None
    lists: dict[str, int] = {}
    for name in gone:
        owner = _last_item(name, shapes, family.shapes)
        if owner is None:
            return None
        lists[owner[0]] = owner[1] + 1
    return lists


def _matters(family: Family, path: Path, value: Any) -> bool:
    """Return True if the class rejects another value of the config, or builds another network from it."""
    built = family.blueprint.with_values({path: value}).try_build()
    return built is None or _differs(built, family)


def _are_indices(family: Family, path: Path, entries: list[Any], layers: int) -> bool:
    """Return True for a list of some layers' indices that the class reads."""
    if not entries or len(set(map(str, entries))) < len(entries):
        return False
    return all(type(entry) is int and 0 <= entry < layers for entry in entries) and _matters(family, path, [])


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


def beside(config: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """Return the lists at the level of a number in a config."""
    level = value_at(config, path[:-1])
    if not isinstance(level, dict):
        return {}
    return {key: entries for key, entries in level.items() if isinstance(entries, list) and not key.startswith("_")}
