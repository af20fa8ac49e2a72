"""The choices of a plan: keep patterns, floors, ceilings and rounding become the allowed counts of each group."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import InputError, KeepPatternError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.limits import AUTO, Bound, Limits
from proxyprune.support.checks import listed

DEFAULT_FLOOR = 0.1
"""Share of its atoms that every group keeps, unless the target cannot be reached otherwise or a floor pattern says something else."""

UNROUNDED = 1
BELOW_DEFAULT_FLOOR = 2


@dataclass(frozen=True)
class AllowedWidths:
    """The counts that one group may have.

    Attributes:
        counts: Allowed numbers of atoms, [levels], descending; the first is the most that may stay.
        atoms: Atoms of the uncut group.
        phases: For each level 0, or why it is used only when the target is out of reach without it: UNROUNDED, BELOW_DEFAULT_FLOOR, or
            their sum. Never descends.
    """

    counts: NDArray[np.int64]
    atoms: int
    phases: NDArray[np.int64]


@dataclass(frozen=True)
class Resolved:
    """Limits, looked up in one graph.

    Attributes:
        allowed: One per prunable group, in graph order.
        kept_blocks: Ids of blocks that must not be removed.
        removed_blocks: Ids of blocks that leave in every mode.
    """

    allowed: tuple[AllowedWidths, ...]
    kept_blocks: frozenset[str]
    removed_blocks: frozenset[str] = frozenset()


class Names:
    """Every name that a pattern can match in one graph."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._prefixes: dict[str, tuple[str, ...]] = {}
        names = [*graph.block_by_id, *graph.by_id]
        for name in (*graph.block_by_id, *graph.program.shapes, *(m.parameter for g in graph.groups for m in g.members)):
            names.extend(self.prefixes(name))
        for alias in graph.program.aliases:
            names.extend(self.prefixes(alias))
        self._known = tuple(dict.fromkeys(names))

    def prefixes(self, name: str) -> tuple[str, ...]:
        """Return a dotted name and all modules that it lies in."""
        if name not in self._prefixes:
            parts = name.split(".")
            self._prefixes[name] = tuple(".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return self._prefixes[name]

    def match(self, pattern: str, kind: str) -> frozenset[str]:
        """Names that a pattern matches; of several joined by "|", those that any of them matches.

        Raises:
            KeepPatternError: If there are none; the message lists the closest ones.
        """
        if "|" in pattern:
            return frozenset().union(*(self.match(part, kind) for part in pattern.split("|")))
        matched = frozenset(name for name in self._known if name == pattern or fnmatch.fnmatchcase(name, pattern))
        if matched:
            shared = {name for alias, name in self._graph.program.aliases.items() if self.inside(alias, matched)}
            return matched | shared
        close = difflib.get_close_matches(pattern, self._known, n=3, cutoff=0.4) or list(self._known[:3])
        raise KeepPatternError(
            f"The {kind} pattern {pattern!r} matches no block, channel group, module or parameter of this {self._graph.model_class}. "
            f"Closest: {', '.join(repr(name) for name in close)}."
        )

    def touches(self, group: ChannelGroup, matched: frozenset[str]) -> bool:
        """Return True if any part of a group is matched."""
        return group.id in matched or any(self.inside(name, matched) for name in (*group.blocks, *_parameters(group)))

    def contains(self, group: ChannelGroup, matched: frozenset[str]) -> bool:
        """Return True if all of a group is matched."""
        return group.id in matched or all(self.inside(name, matched) for name in _parameters(group))

    def inside(self, name: str, matched: frozenset[str]) -> bool:
        """Return True if a name, or a module around it, is matched."""
        return any(prefix in matched for prefix in self.prefixes(name))


def resolve(graph: ModelGraph, limits: Limits) -> Resolved:
    """Return the counts that limits allow.

    Raises:
        KeepPatternError: If a pattern matches nothing.
        InputError: If a floor and a ceiling leave a group without an allowed count, or rounding needs a cost table that is missing.
    """
    names = Names(graph)
    keep = frozenset().union(*(names.match(pattern, "keep") for pattern in limits.keep))
    floors = [(names.match(pattern, "floor"), bound) for pattern, bound in limits.floors.items()]
    floored = [(_reach(names, graph, matched), bound) for matched, bound in floors]
    ceiled = [(_reach(names, graph, names.match(pattern, "ceiling")), bound) for pattern, bound in limits.ceilings.items()]
    allowed = []
    for group in graph.prunable:
        if names.touches(group, keep):
            allowed.append(uncut(group))
            continue
        least = [_floor_atoms(group, bound) for reached, bound in floored if group.id in reached]
        most = [_ceiling_atoms(group, bound) for reached, bound in ceiled if group.id in reached]
        allowed.append(_allowed(group, max(least, default=None), min(most, default=group.atoms), multiple_of(graph, group, limits)))
    firm = keep.union(*(matched for matched, bound in floors if bound > 0))
    kept = frozenset(_kept_blocks(names, graph, firm))
    return Resolved(tuple(allowed), kept, frozenset().union(*(_removed(names, graph, pattern, kept) for pattern in limits.remove)))


def multiple_of(graph: ModelGraph, group: ChannelGroup, limits: Limits) -> int:
    """Return the multiple of channels that a group should have.

    Raises:
        InputError: If it is to be taken from the cost table of this machine and the graph has none.
    """
    if limits.round_to != AUTO:
        return int(limits.round_to)
    if graph.cost.time is None:
        raise InputError(
            "round_to='auto' needs the cost table of this machine, and this graph has none. Make the plan "
            "from proxyprune.with_times(graph, model, example_inputs), or give a number."
        )
    return graph.cost.time.multiples.get(group.id, 1)


def uncut(group: ChannelGroup) -> AllowedWidths:
    """Return the only count of a group that stays as it is."""
    return AllowedWidths(np.array([group.atoms], np.int64), group.atoms, np.zeros(1, np.int64))


def lattice(group: ChannelGroup) -> NDArray[np.int64]:
    """Every count that a group can have at all, descending."""
    bins = len(set(group.bins)) if group.bins is not None else 1
    return np.arange(group.atoms, max(group.floor, bins) - 1, -math.lcm(group.step, bins), dtype=np.int64)


def _allowed(group: ChannelGroup, least: int | None, most: int, round_to: int) -> AllowedWidths:
    counts = lattice(group)
    counts = counts[(counts >= (least or 0)) & (counts <= most)]
    if not len(counts):
        raise InputError(
            f"Group '{group.id}' has {group.atoms} atoms of {group.atom_channels} channels in steps of {group.step}: its floor "
            f"({least or int(lattice(group)[-1])} atoms) and ceiling ({most} atoms) leave no width. Lower the floor or raise the ceiling."
        )
    multiple = min(round_to, group.atoms * group.atom_channels + 1)  # a larger one has no multiple here
    rounded = ((counts * group.atom_channels) % multiple == 0) | (counts == group.atoms)
    # Unrounded counts come after the last rounded one, as a last resort.
    last = int(counts[rounded][-1]) if rounded.any() else int(counts[0]) + 1
    usable = rounded | (counts < last)
    counts, rounded = counts[usable], rounded[usable]
    default = math.ceil(DEFAULT_FLOOR * group.atoms) if least is None else 0
    phases = np.where(rounded, 0, UNROUNDED) + np.where(counts < default, BELOW_DEFAULT_FLOOR, 0)
    phases[0] = 0
    return AllowedWidths(counts, group.atoms, phases.astype(np.int64))


def _reach(names: Names, graph: ModelGraph, matched: frozenset[str]) -> frozenset[str]:
    inner = frozenset(group.id for group in graph.prunable if names.contains(group, matched))
    return inner or frozenset(group.id for group in graph.prunable if names.touches(group, matched))


def _kept_blocks(names: Names, graph: ModelGraph, firm: frozenset[str]) -> Iterable[str]:
    around = {prefix for name in firm for prefix in names.prefixes(name)}
    for block in graph.blocks:
        if names.inside(block.id, firm) or block.id in around or any(group in firm for group in block.inner):
            yield block.id


def _removed(names: Names, graph: ModelGraph, pattern: str, kept: frozenset[str]) -> frozenset[str]:
    matched = names.match(pattern, "remove")
    found = frozenset(block.id for block in graph.blocks if block.removable and names.inside(block.id, matched))
    if not found:
        removable = [block.id for block in graph.blocks if block.removable]
        raise InputError(f"No block that {pattern!r} matches can be removed. Removable blocks: {listed(removable, 8) or 'none'}.")
    if found & kept:
        raise InputError(
            f"{pattern!r} removes {listed(sorted(found & kept), 4)}, and a keep pattern or a floor protects it. Omit one of them."
        )
    return found


def _parameters(group: ChannelGroup) -> Iterable[str]:
    return dict.fromkeys(member.parameter for member in group.members)


def _floor_atoms(group: ChannelGroup, bound: Bound) -> int:
    exact = bound * group.atoms if isinstance(bound, float) else bound / group.atom_channels
    return min(group.atoms, math.ceil(exact - 1e-9))


def _ceiling_atoms(group: ChannelGroup, bound: Bound) -> int:
    return min(group.atoms, math.floor(bound * group.atoms + 1e-9) if isinstance(bound, float) else bound // group.atom_channels)
