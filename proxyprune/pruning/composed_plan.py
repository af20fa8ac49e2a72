"""A second cut, made on a network that was cut before, as a plan for the unpruned network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import KeepPatternError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.constraints import BELOW_DEFAULT_FLOOR, AllowedWidths, Names, resolve
from proxyprune.planning.limits import Limits
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.price import PlanCost
from proxyprune.result import PruneResult

Atom = tuple[str, int]
"""Channel group of the unpruned network, and atom of it."""

_NO_BLOCK = "Mode 'both' removed no block"
"""Start of a planner's note that the last step may have, and the whole does not."""

_Places = dict[tuple[str, int], NDArray[np.int64]]


class OriginalAtoms:
    """The atoms of a network that was cut, found among those of the unpruned network.

    Groups of two networks are compared by the positions of their members: an index along a cut dimension is looked up among the indices
    that the cut kept, and so in the unpruned parameter.

    Args:
        before: The result of the cuts so far; its graph is that of the unpruned network.
        graph: The trace of the network that was cut.
    """

    def __init__(self, before: PruneResult, graph: ModelGraph) -> None:
        self._original = before.graph
        self._kept = {(cut.parameter, cut.dim): np.asarray(cut.kept, np.int64) for cut in before.surgery.cuts}
        self._places: _Places = {}
        self._numbers: _Places = {}
        for number, group in enumerate(before.graph.groups):
            for member in group.members:
                key = member.parameter, member.dim
                size = before.graph.parameter_shapes[member.parameter][member.dim]
                places = self._places.setdefault(key, np.full(size, -1, np.int64))
                numbers = self._numbers.setdefault(key, np.full(size, -1, np.int64))
                places[member.positions] = number
                numbers[member.positions] = np.arange(group.atoms)[:, None]
        self._graph = graph

    def of(self, group: ChannelGroup) -> tuple[frozenset[Atom], ...]:
        """Return, for each atom of a group of the cut network, the atoms of the unpruned network that leave with it."""
        found: list[set[Atom]] = [set() for _ in range(group.atoms)]
        for member in group.members:
            key = member.parameter, member.dim
            if key not in self._places:
                continue
            positions = member.positions if key not in self._kept else self._kept[key][member.positions]
            for atom, (places, numbers) in enumerate(zip(self._places[key][positions], self._numbers[key][positions], strict=True)):
                found[atom] |= {
                    (self._original.groups[place].id, number)
                    for place, number in zip(places.tolist(), numbers.tolist(), strict=True)
                    if place >= 0
                }
        return tuple(map(frozenset, found))

    def groups(self) -> dict[str, frozenset[str]]:
        """Return the groups of the unpruned network that each prunable group of the cut one belongs to."""
        return {group.id: frozenset(name for atom in self.of(group) for name, _ in atom) for group in self._graph.prunable}


def limits_after(before: PruneResult, graph: ModelGraph, asked: Limits, *, default_floor: bool) -> Limits:
    """Return the limits of a request, as they hold for a network that was cut before.

    Shares of a width are shares of the unpruned one, so they become numbers of channels.

    Args:
        before: The result of the cuts so far.
        graph: The trace of the network that was cut.
        asked: The limits as the caller gave them, for the unpruned network.
        default_floor: Keep the tenth of its atoms that every group keeps by default.
    """
    original = before.graph
    resolved = resolve(original, asked)
    allowed = {group.id: entry for group, entry in zip(original.prunable, resolved.allowed, strict=True)}
    keep = [pattern for pattern in asked.keep if _matches(graph, pattern)]
    floors: dict[str, int] = {}
    ceilings: dict[str, int] = {}
    for name, belongs_to in OriginalAtoms(before, graph).groups().items():
        entries = [allowed[group] for group in belongs_to if group in allowed]
        group = graph.by_id[name]
        if len(entries) < len(belongs_to) or any(len(entry.counts) == 1 for entry in entries):
            keep.append(name)
            continue
        least = max((_least(entry, default=default_floor) for entry in entries), default=0)
        if asked.floors or default_floor:
            floors[name] = max(1, min(least, group.atoms)) * group.atom_channels
        most = min((int(entry.counts[0]) for entry in entries if entry.counts[0] < entry.atoms), default=group.atoms)
        if most < group.atoms:
            ceilings[name] = most * group.atom_channels
    return Limits(keep=tuple(keep), floors=floors, ceilings=ceilings, round_to=asked.round_to)


def _matches(graph: ModelGraph, pattern: str) -> bool:
    """Return False for the id of a channel group that the cut gave another one; its limits are looked up atom by atom."""
    try:
        return bool(Names(graph).match(pattern, "keep"))
    except KeepPatternError:
        return False


def _least(entry: AllowedWidths, *, default: bool) -> int:
    above = entry.counts[(entry.phases & BELOW_DEFAULT_FLOOR) == 0] if default else entry.counts
    return int(above[-1])


def composed(before: PruneResult, graph: ModelGraph, further: PrunePlan, budget: int) -> PrunePlan:
    """Return one plan for the unpruned network that does what two cuts did.

    Args:
        before: The result of the cuts so far.
        graph: The trace of the network that they left.
        further: The plan that was applied to that network.
        budget: The budget of that plan, in its metric.
    """
    original, atoms = before.graph, OriginalAtoms(before, graph)
    leaving: set[Atom] = set()
    for name, kept in further.kept.items():
        found = atoms.of(graph.by_id[name])
        stays = set(kept)
        leaving |= {atom for index, entry in enumerate(found) if index not in stays for atom in entry}
    kept_atoms: dict[str, tuple[int, ...]] = {}
    for group in original.prunable:
        so_far = before.plan.kept.get(group.id, tuple(range(group.atoms)))
        left = tuple(atom for atom in so_far if (group.id, atom) not in leaving)
        if len(left) < group.atoms:
            kept_atoms[group.id] = left
    removed = frozenset(before.plan.removed_blocks) | frozenset(further.removed_blocks)
    counts = np.array([len(kept_atoms.get(group.id, range(group.atoms))) for group in original.prunable], np.int64)
    spent = {metric: PlanCost(original, metric, removed).one(counts) for metric in ("macs", "params")}
    return replace(
        before.plan,
        target=budget,
        macs=spent["macs"],
        params=spent["params"],
        kept=kept_atoms,
        widths={name: (original.by_id[name].width, len(left) * original.by_id[name].atom_channels) for name, left in kept_atoms.items()},
        removed_blocks=tuple(block.id for block in original.blocks if block.id in removed),
        notes=tuple(note for note in further.notes if not (removed and note.startswith(_NO_BLOCK))),
        target_macs=budget if further.metric == "macs" else original.macs,
        target_params=budget if further.metric == "params" else original.params,
    )
