"""The config of a pruned network, from its shapes and the numbers in its modules.

A number of the config is known as soon as one dimension that reacts to it has another size than the unpruned network. Numbers that no shape
shows (counts of heads) come from the attributes that the cut changed. A config counts only if the class builds exactly the pruned network's
shapes from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import nn

from proxyprune.errors import ConfigError
from proxyprune.standard.blueprint import Attribute, Blueprint, Path, attributes_of, shapes_of, written
from proxyprune.standard.layers import Containers, followed, moved_up, same_shapes, without_layers
from proxyprune.standard.reactions import Dim, Family
from proxyprune.tracing.names import is_inside

Shapes = Mapping[str, tuple[int, ...]]

_MOST_STATES = 256
_MOST_CONFIGS = 256


@dataclass(frozen=True)
class StandardConfig:
    """A config from which the class builds a network with the shapes of a pruned one.

    Attributes:
        blueprint: Class and new config.
        numbers: New values of the numbers that changed, by path, those that count layers included.
        counts: Those that count layers, and the lists beside them that have an entry a layer.
        names: Parameter or buffer of the pruned network -> its name in the standard one.
        removed: Module lists that lost layers, with the indices of these.
        unlike: Attributes that the pruned network's modules have with other values; 0 is the best evidence.
    """

    blueprint: Blueprint
    numbers: Mapping[Path, Any]
    counts: Mapping[Path, Any] = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    removed: Containers = field(default_factory=list)
    unlike: int = 0

    @property
    def renumbered(self) -> bool:
        """True if layers were removed, so that the names of others differ."""
        return any(indices for _, indices in self.removed)

    def name_of(self, module: str) -> str | None:
        """Return the name in the standard network of a module, parameter or buffer; None if it is in a layer that left."""
        gone = [f"{container}.{index}" for container, indices in self.removed for index in indices]
        return None if any(is_inside(module, layer) for layer in gone) else moved_up(module, self.removed)


def configs_of(family: Family, pruned: nn.Module) -> tuple[StandardConfig, ...]:
    """Return the configs that describe a pruned network, best evidence first.

    Args:
        family: Of the unpruned network.
        pruned: The pruned network (without a wrapper around it).

    Raises:
        ConfigError: If there is none; the message names the numbers of the config that stand in the way.
    """
    shapes = shapes_of(pruned)
    gone = _gone_layers(family, shapes)
    containers = [(container, indices) for path, indices in gone.items() for container in family.reactions[path].lists]
    names = {name: moved_up(name, containers) for name in shapes}
    target = {names[name]: shape for name, shape in shapes.items()}
    counts: dict[Path, Any] = {}
    for path, indices in gone.items():
        counts |= followed(family, path, indices)
    dense = without_layers(family.shapes, containers)
    attributes = {(moved_up(key[0], containers), key[1]): value for key, value in attributes_of(pruned).items()}
    found: dict[str, StandardConfig] = {}
    for numbers in _solutions(family, dense, target):
        for hidden in _hidden(family, attributes, numbers):
            values = {**counts, **numbers, **hidden}
            made = _checked(family, values, target, attributes)
            if made is not None:
                blueprint, unlike = made
                found.setdefault(blueprint.text, StandardConfig(blueprint, values, counts, names, containers, unlike))
    if not found:
        raise ConfigError(_obstacles(family, dense, target))
    return tuple(sorted(found.values(), key=lambda entry: (entry.unlike, len(entry.numbers))))


def _gone_layers(family: Family, shapes: Shapes) -> dict[Path, list[int]]:
    """Return indices of the layers that a network lacks, by the number that counts them."""
    gone: dict[Path, list[int]] = {}
    for path, reaction in family.layer_counts.items():
        missing = [
            [index for index in range(items) if not any(name.startswith(f"{container}.{index}.") for name in shapes)]
            for container, items in reaction.lists.items()
        ]
        if missing[0] and all(indices == missing[0] for indices in missing):
            gone[path] = missing[0]
    return gone


def _solutions(family: Family, dense: Shapes, target: Shapes) -> Iterator[dict[Path, int]]:
    """Values of numbers that explain every dimension, as far as sizes are linear in them."""
    changed = {
        (name, dim): size - dense[name][dim]
        for name, shape in target.items()
        if name in dense and len(dense[name]) == len(shape)
        for dim, size in enumerate(shape)
        if size != dense[name][dim]
    }
    waiting: list[dict[Path, Fraction]] = [{}]
    seen: set[frozenset[tuple[Path, Fraction]]] = set()
    tried = 0
    while waiting and tried < _MOST_STATES:
        falls = waiting.pop()
        tried += 1
        dim, rest = _unexplained(family, changed, falls, target)
        if dim is None:
            yield {path: int(family.reactions[path].value + fall) for path, fall in falls.items()}
            continue
        for path in reversed(family.reacting.get(dim, ())):
            fall = rest / family.reactions[path].slopes[dim]
            if path not in falls and fall.denominator == 1 and family.reactions[path].value + fall >= 1:
                state = {**falls, path: fall}
                if frozenset(state.items()) not in seen:
                    seen.add(frozenset(state.items()))
                    waiting.append(state)


def _unexplained(
    family: Family, changed: Mapping[Dim, int], falls: Mapping[Path, Fraction], present: Shapes
) -> tuple[Dim | None, Fraction]:
    """Return the dimension that fewest numbers could still explain, and the size that it lacks."""
    sizes: dict[Dim, Fraction] = {dim: Fraction(size) for dim, size in changed.items()}
    for path, fall in falls.items():
        for dim, slope in family.reactions[path].slopes.items():
            if dim[0] in present:
                sizes[dim] = sizes.get(dim, Fraction(0)) - slope * fall
    open_dims = [dim for dim, size in sizes.items() if size]
    if not open_dims:
        return None, Fraction(0)
    chosen = min(open_dims, key=lambda dim: sum(1 for path in family.reacting.get(dim, ()) if path not in falls))
    return chosen, sizes[chosen]


def _hidden(family: Family, attributes: Mapping[Attribute, Any], numbers: Mapping[Path, int]) -> Iterator[dict[Path, int]]:
    """Values of the numbers that no shape shows: what the modules that they reach hold now, in proportion to others, or unchanged."""
    shares = {Fraction(value, family.reactions[path].value) for path, value in numbers.items()}
    choices: list[tuple[Path, list[int]]] = []
    for path, reaction in family.hidden.items():
        if path in numbers:
            continue
        held = {
            attributes[key]
            for key in reaction.attributes
            if family.attributes[key] == reaction.value and type(attributes.get(key)) is int and attributes[key] != reaction.value
        }
        scaled = {int(reaction.value * share) for share in shares if (reaction.value * share).denominator == 1} - held - {reaction.value}
        if held or scaled:
            choices.append((path, [*sorted(held), *sorted(scaled), reaction.value]))
    combinations = itertools.product(*(values for _, values in choices))
    for chosen in itertools.islice(combinations, _MOST_CONFIGS):
        yield {path: value for (path, _), value in zip(choices, chosen, strict=True) if value != family.reactions[path].value}


def _checked(
    family: Family, values: Mapping[Path, Any], target: Shapes, attributes: Mapping[Attribute, Any]
) -> tuple[Blueprint, int] | None:
    """Return the blueprint with these values, and how many attributes speak against it; None if it gives other shapes."""
    blueprint = family.blueprint.with_values(values)
    built = blueprint.try_build()
    if built is None or not same_shapes(family, shapes_of(built), target):
        return None
    found = attributes_of(built)
    return blueprint, sum(1 for key, value in attributes.items() if key in found and found[key] != value)


def _obstacles(family: Family, dense: Shapes, target: Shapes) -> str:
    """Name the numbers of a config that would need several values at once, and the dimensions that no number sets."""
    needed: dict[Path, dict[Fraction, str]] = {}
    unset = []
    for name, shape in target.items():
        for dim, size in enumerate(shape):
            before = dense[name][dim] if name in dense and len(dense[name]) == len(shape) else size
            paths = family.reacting.get((name, dim), ())
            if size != before and not paths:
                unset.append(f"no number of the config sets dimension {dim} of '{name}' ({before} to {size})")
            if len(paths) == 1:
                value = family.reactions[paths[0]].value + Fraction(size - before) / family.reactions[paths[0]].slopes[name, dim]
                needed.setdefault(paths[0], {}).setdefault(value, name)
    conflicts = [
        f"{written(path)} would be " + " and ".join(f"{_number(value)} for '{name}'" for value, name in list(values.items())[:3])
        for path, values in needed.items()
        if len(values) > 1
    ]
    missing = [name for name in dense if name not in target]
    reasons = [*conflicts[:3], *unset[:3]]
    if missing:
        reasons.append(f"'{missing[0]}' is gone, which no number of the config takes away")
    return "; ".join(reasons) or "no config that the class accepts gives the sizes of the pruned network"


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"
