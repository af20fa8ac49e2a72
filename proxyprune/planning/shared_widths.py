"""Groups that keep equal widths: what a config can express, the same widths in repeated layers, or patterns of the caller."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.constraints import UNROUNDED, AllowedWidths, Names, lattice
from proxyprune.planning.counted_layers import counted_layers
from proxyprune.planning.request import Uniform

if TYPE_CHECKING:
    from proxyprune.standard.blueprint import Path
    from proxyprune.standard.knobs import Knob
    from proxyprune.standard.reactions import Family

IndexArray = NDArray[np.int64]


@dataclass(frozen=True)
class SharedWidths:
    """The widths that some groups may have together.

    Attributes:
        groups: Indices of prunable groups.
        atoms: Atoms of each uncut group, [groups].
        counts: Allowed numbers of atoms, [levels, groups]; the first level is the most that may stay.
        phases: For each level, as in `AllowedWidths`. Never descends.
    """

    groups: tuple[int, ...]
    atoms: IndexArray
    counts: IndexArray
    phases: IndexArray

    @property
    def shares(self) -> NDArray[np.float64]:
        """Mean share of the atoms that stays at each level, [levels]."""
        return np.asarray((self.counts / self.atoms).mean(axis=1), dtype=np.float64)

    def level(self, kept: IndexArray) -> int:
        """Return the first level that has these counts."""
        return int(np.flatnonzero((self.counts == kept[list(self.groups)]).all(axis=1))[0])


@dataclass(frozen=True)
class Tie:
    """Groups that lose atoms together.

    Attributes:
        groups: Indices of prunable groups.
        counts: Numbers of atoms that they can have together, [levels, groups], descending from the uncut ones.
        knob: The knob of a config behind it, or None.
    """

    groups: tuple[int, ...]
    counts: IndexArray
    knob: Knob | None = None

    @property
    def steps(self) -> IndexArray:
        """Steps of the knob at each level, [levels]."""
        assert self.knob is not None
        return np.asarray((self.counts[0, 0] - self.counts[:, 0]) // self.knob.atoms[self.groups[0]])

    def steps_of(self, kept: IndexArray) -> int:
        """Return the steps of the knob in a plan; groups in removed blocks are whole there."""
        assert self.knob is not None
        return max(int(self.counts[0, place] - kept[group]) // self.knob.atoms[group] for place, group in enumerate(self.groups))


@dataclass(frozen=True)
class Ties:
    """Everything that uniform widths mean for one graph.

    Attributes:
        ties: A group is in at most one.
        fixed: Index of a group that stays whole -> why.
        family: The config's family if widths follow a config, or None.
        numbers: Numbers of the config that are decided and divide others.
        held: Blocks that stay, because the class cannot do without them.
    """

    ties: tuple[Tie, ...]
    fixed: Mapping[int, str] = field(default_factory=dict)
    family: Family | None = None
    numbers: Mapping[Path, int] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

    @property
    def divisors(self) -> frozenset[Path]:
        """Numbers of the config by which others have to be divisible."""
        return frozenset(other for tie in self.ties if tie.knob is not None for other in tie.knob.divisors.values())

    def removable(self, graph: ModelGraph) -> list[frozenset[str]]:
        """Return the sets of blocks that may leave: single blocks, or whole layers that a config counts."""
        if self.family is None:
            return [frozenset((block.id,)) for block in graph.blocks if block.removable]
        layers = counted_layers(graph, self.family)
        return [layer.blocks for layer in layers if not layer.obstacle and self.held.isdisjoint(layer.blocks)]

    def check_removed(self, graph: ModelGraph, blocks: frozenset[str]) -> None:
        """Raise if blocks that should leave are no layers that the config counts, a part of one, or of one that cannot leave.

        Raises:
            InputError: If so; the message names the blocks.
        """
        if self.family is None or not blocks:
            return
        counted: set[str] = set()
        for layer in counted_layers(graph, self.family):
            if layer.blocks & blocks and not layer.blocks <= blocks:
                together = ", ".join(sorted(layer.blocks))
                raise InputError(f"{together} can only be removed together, because the config counts layers. Remove all of them or none.")
            if layer.blocks & blocks and layer.obstacle:
                raise InputError(f"{', '.join(sorted(layer.blocks))} cannot be removed with uniform='config': {layer.obstacle}.")
            counted |= layer.blocks
        if not blocks <= counted:
            raise InputError(
                f"{', '.join(sorted(blocks - counted))} cannot be removed with uniform='config': no number of the config counts "
                "such layers. Leave them out of remove, or use uniform='layers' and save with proxyprune.save."
            )


def ties_of(graph: ModelGraph, uniform: Uniform) -> Ties:
    """Return what a request for uniform widths means for a graph.

    Raises:
        InputError: If widths should follow a config and there is none, or a pattern matches groups of different sizes.
        KeepPatternError: If a pattern matches nothing.
    """
    if uniform is False or not uniform:
        return Ties(())
    if isinstance(uniform, tuple):
        return _by_patterns(graph, uniform)
    family = None if uniform == "layers" else _family(graph)
    if family is not None and _describes(family, graph):
        return _by_config(graph, family)
    if uniform == "config":
        why = "has no config that its class could be built from" if family is None else "is not the network that its config describes"
        raise InputError(f"uniform='config' needs a network with a config, and this {graph.model_class} {why}. Use uniform='layers'.")
    return _by_layers(graph)


def shared(ties: Ties, groups: Sequence[ChannelGroup], allowed: Sequence[AllowedWidths]) -> tuple[SharedWidths, ...]:
    """Return the widths of every set of tied groups and of every other group, by first group.

    Args:
        ties: The ties.
        groups: The prunable groups.
        allowed: What each group may have by itself.
    """
    units: list[SharedWidths] = []
    tied: set[int] = set()
    for tie in ties.ties:
        units.append(_joint(replace(tie, counts=_dividing(tie, ties, groups)), groups, allowed))
        tied.update(tie.groups)
    for index, entry in enumerate(allowed):
        if index not in tied:
            units.append(_alone(index, entry, whole=index in ties.fixed))
    return tuple(sorted(units, key=lambda unit: unit.groups[0]))


def without_groups(units: Iterable[SharedWidths], gone: Collection[int]) -> tuple[SharedWidths, ...]:
    """Return the widths with some groups left whole, each by itself; the groups tied to them are not held back."""
    found = []
    for unit in units:
        rest = [place for place, group in enumerate(unit.groups) if group not in gone]
        if len(rest) == len(unit.groups):
            found.append(unit)
            continue
        if rest:
            groups = tuple(unit.groups[place] for place in rest)
            found.append(replace(unit, groups=groups, atoms=unit.atoms[rest], counts=unit.counts[:, rest]))
        for group, atoms in zip(unit.groups, unit.atoms.tolist(), strict=True):
            if group in gone:
                whole = np.array([atoms], np.int64)
                found.append(SharedWidths((group,), whole, whole[None], np.zeros(1, np.int64)))
    return tuple(sorted(found, key=lambda unit: unit.groups[0]))


def decided(ties: Ties, kept: IndexArray) -> Ties:
    """Hold every number that divides others where a plan has it, and leave out the levels of the others that it does not divide.

    Args:
        ties: The ties of a config.
        kept: Atoms that the plan keeps, [groups].
    """
    assert ties.family is not None
    numbers: dict[Path, int] = {}
    found = []
    for tie in ties.ties:
        if tie.knob is None or ties.divisors.isdisjoint(tie.knob.numbers):
            found.append(tie)
            continue
        steps = tie.steps_of(kept)
        numbers |= {path: ties.family.reactions[path].value - fall * steps for path, fall in tie.knob.numbers.items()}
        found.append(replace(tie, counts=tie.counts[tie.steps == steps]))
    return replace(ties, ties=tuple(found), numbers=numbers)


def allows(ties: Ties, groups: Sequence[ChannelGroup], kept: IndexArray) -> bool:
    """Return True if every number that divides others fits all other numbers of a plan.

    Args:
        ties: The ties of a config, with no number decided.
        groups: The prunable groups.
        kept: Atoms that the plan keeps, [groups].
    """
    rest = decided(ties, kept)
    chosen = [replace(tie, counts=tie.counts[tie.steps == tie.steps_of(kept)]) for tie in ties.ties if tie.knob is not None]
    return all(len(_dividing(tie, rest, groups)) > 0 for tie in chosen)


def _dividing(tie: Tie, ties: Ties, groups: Sequence[ChannelGroup]) -> IndexArray:
    """Return the counts of a tie at which the numbers of its knob divide others, and are divided, as the class requires."""
    if tie.knob is None or ties.family is None:
        return tie.counts
    first = tie.groups[0]
    steps = (groups[first].atoms - tie.counts[:, 0]) // tie.knob.atoms[first]
    stays = np.ones(len(steps), dtype=bool)
    for path, other in tie.knob.divisors.items():
        values = ties.family.values[path] - tie.knob.numbers[path] * steps
        stays &= values % ties.numbers.get(other, ties.family.values[other]) == 0
    for path, other in tie.knob.multiples.items():
        if path not in ties.divisors:  # otherwise the other number is the one that follows
            stays &= ties.family.values[other] % (ties.family.values[path] - tie.knob.numbers[path] * steps) == 0
    return tie.counts[stays]


def _family(graph: ModelGraph) -> Family | None:
    from proxyprune.standard.reactions import family_of  # imports torch, which other plans do without

    return None if graph.blueprint is None else family_of(graph.blueprint)


def _describes(family: Family, graph: ModelGraph) -> bool:
    """Return True if the traced network has exactly the shapes that its config gives."""
    prefix = family.blueprint.prefix
    shapes = {**graph.program.shapes, **{alias: graph.program.shapes[name] for alias, name in graph.program.aliases.items()}}
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)} == dict(family.shapes)


def _by_config(graph: ModelGraph, family: Family) -> Ties:
    from proxyprune.standard.knobs import knobs_of

    found = knobs_of(family, graph.coupling, graph.program)
    ties = []
    for knob in found.knobs:
        groups = tuple(sorted(knob.atoms))
        atoms = np.array([graph.prunable[group].atoms for group in groups], np.int64)
        steps = np.array([knob.atoms[group] for group in groups], np.int64)
        least = min((graph.prunable[group].atoms - 1) // knob.atoms[group] for group in groups)
        numbers = min((family.reactions[path].value - 1) // fall for path, fall in knob.numbers.items())
        ties.append(Tie(groups, atoms - np.arange(min(least, numbers) + 1)[:, None] * steps, knob))
    return Ties(tuple(ties), found.obstacles, family)


def _by_layers(graph: ModelGraph) -> Ties:
    """Tie groups with the same members in repeated modules: names with the numbers left out, sizes and atoms are equal."""
    alike: dict[object, list[int]] = {}
    for index, group in enumerate(graph.prunable):
        members = tuple(sorted((re.sub(r"\d+", "#", m.parameter), m.dim, m.positions.shape) for m in group.members))
        alike.setdefault((members, group.atoms, group.step, group.bins), []).append(index)
    return Ties(tuple(_same_counts(graph, indices) for indices in alike.values() if len(indices) > 1))


def _by_patterns(graph: ModelGraph, patterns: Sequence[str]) -> Ties:
    names = Names(graph)
    taken: set[int] = set()
    ties: list[Tie] = []
    for pattern in patterns:
        matched = names.match(pattern, "uniform")
        owned = [
            index for index, group in enumerate(graph.prunable) if group.id in matched or names.inside(group.members[0].parameter, matched)
        ]
        indices = [index for index in owned if index not in taken]
        sizes = {graph.prunable[index].id: graph.prunable[index].atoms for index in indices}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"'{group}' has {atoms}" for group, atoms in list(sizes.items())[:4])
            raise InputError(
                f"The uniform pattern {pattern!r} matches groups with different numbers of atoms: {listed}. Use one pattern each."
            )
        taken.update(indices)
        if len(indices) > 1:
            ties.append(_same_counts(graph, indices))
    return Ties(tuple(ties))


def _same_counts(graph: ModelGraph, indices: Sequence[int]) -> Tie:
    counts = lattice(graph.prunable[indices[0]])
    for index in indices[1:]:
        counts = counts[np.isin(counts, lattice(graph.prunable[index]))]
    return Tie(tuple(indices), np.repeat(counts[:, None], len(indices), axis=1))


def _alone(index: int, entry: AllowedWidths, *, whole: bool) -> SharedWidths:
    levels = 1 if whole else len(entry.counts)
    counts = np.array([entry.atoms], np.int64) if whole else entry.counts
    return SharedWidths((index,), np.array([entry.atoms], np.int64), counts[:, None], entry.phases[:levels])


def _joint(tie: Tie, groups: Sequence[ChannelGroup], allowed: Sequence[AllowedWidths]) -> SharedWidths:
    """Return the levels that every group of a tie allows.

    Raises:
        InputError: If there is none.
    """
    phases = np.zeros(len(tie.counts), np.int64)
    usable = np.ones(len(tie.counts), dtype=bool)
    for place, group in enumerate(tie.groups):
        entry = allowed[group]
        known = {int(count): int(phase) for count, phase in zip(entry.counts, entry.phases, strict=True)}
        usable &= np.isin(tie.counts[:, place], entry.counts)
        phases |= np.array([known.get(int(count), 0) for count in tie.counts[:, place]], np.int64)
    if not usable.any():
        names = ", ".join(f"'{groups[group].id}'" for group in tie.groups[:4])
        raise InputError(
            f"{len(tie.groups)} groups keep equal widths ({names}), and their floors, ceilings and keep patterns leave no common width. "
            "Give all of them the same limits, or plan without uniform."
        )
    counts, phases = tie.counts[usable], phases[usable]
    rounded = np.flatnonzero((phases & UNROUNDED) == 0)
    last = int(rounded[-1]) if len(rounded) else -1
    stays = ((phases & UNROUNDED) == 0) | (np.arange(len(counts)) > last)  # unrounded widths come last
    phases = phases[stays]
    phases[0] = 0
    atoms = np.array([groups[group].atoms for group in tie.groups], np.int64)
    return SharedWidths(tie.groups, atoms, counts[stays], np.maximum.accumulate(phases))
