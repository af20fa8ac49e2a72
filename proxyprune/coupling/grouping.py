"""Channel groups: from axis classes to the parameter slices that must shrink together.

Positions with the same class leave together (an atom); atoms that occur equally often on every axis of the program are
interchangeable and form one channel group, so that every size in the program is linear in the number of atoms kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from proxyprune.coupling.axes import FIXED, Axis, AxisLabels, Classes, LabelArray
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.groups import ChannelGroup, Member
from proxyprune.coupling.options import Options
from proxyprune.coupling.outcome import CommonDivisor, Outcome, Size
from proxyprune.tracing.nodes import op_name, output_shapes
from proxyprune.tracing.program import Program

SignatureArray = NDArray[np.uint64]
KERNEL = "is a kernel or spatial dimension"
"""Pinned for this reason alone, a dimension is not worth a line in a report."""


@dataclass(frozen=True)
class Walked:
    """A program after every rule was applied once: labels with their relations, and what the rules said."""

    labels: AxisLabels
    leaves: Mapping[str, tuple[Axis, ...]]
    outcomes: Mapping[Node, Outcome]
    unsupported_ops: tuple[str, ...]
    registered_ops: tuple[str, ...]
    further: tuple[Mapping[Node, Outcome], ...] = ()


_MIX = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: SignatureArray) -> SignatureArray:
    """Scatter 64-bit integers (splitmix64 finaliser), so that sums of them make signatures."""
    with np.errstate(over="ignore"):
        values = values.astype(np.uint64) * _MIX
        values ^= values >> np.uint64(30)
        values *= np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(27)
        values *= np.uint64(0x94D049BB133111EB)
        values ^= values >> np.uint64(31)
    return values


def form_groups(program: Program, walked: Walked, options: Options) -> Coupling:
    """Put the classes of a walked program into channel groups, prunable ones first."""
    classes = walked.labels.solve()
    signature = _signatures(classes, _every_axis(walked))
    prunable, pinned = _Grouping(program, classes, signature, walked.leaves).groups()
    group_of = np.full(int(classes.of.max()) + 1, -1, np.int64)
    atom_of = np.full(int(classes.of.max()) + 1, -1, np.int64)
    for index, draft in enumerate(prunable):
        group_of[draft.atoms] = index
        atom_of[draft.atoms] = np.arange(len(draft.atoms))
    steps, bins = _steps(walked.labels, classes, [len(draft.atoms) for draft in prunable], group_of, atom_of, options)
    groups = [_group(draft, steps[index], bins[index]) for index, draft in enumerate(prunable)]
    groups += [_group(draft, 1, None) for draft in pinned]
    uncosted = dict.fromkeys(op_name(node) for node, outcome in walked.outcomes.items() if not outcome.costed and any(output_shapes(node)))
    return Coupling(
        tuple(groups),
        walked.outcomes,
        walked.leaves,
        group_of,
        atom_of,
        walked.unsupported_ops,
        tuple(uncosted),
        walked.registered_ops,
        classes,
        walked.further,
    )


@dataclass(frozen=True)
class _Draft:
    """A group before its steps are known: its members, the classes that are its atoms, and why it is pinned."""

    members: tuple[Member, ...]
    atoms: LabelArray
    reason: str | None


def _group(draft: _Draft, step: int, bins: tuple[int, ...] | None) -> ChannelGroup:
    first, atoms = draft.members[0], len(draft.atoms)
    start = int(first.positions.flat[0])
    return ChannelGroup(
        id=f"{first.parameter}:{first.dim}" + (f"@{start}" if start else ""),
        width=int(first.positions.size),
        unit=step * (int(first.positions.size) // atoms),
        members=draft.members,
        pinned=draft.reason,
        atoms=atoms,
        step=step,
        bins=bins,
    )


def _every_axis(walked: Walked) -> Iterator[LabelArray]:
    """Every distinct axis of the program, once."""
    seen: set[int] = set()
    for axis in _axes(walked):
        if isinstance(axis, np.ndarray) and id(axis) not in seen:
            seen.add(id(axis))
            yield axis


def _axes(walked: Walked) -> Iterator[Axis | Size]:
    for axes in walked.leaves.values():
        yield from axes
    for outcome in (outcome for outcomes in (walked.outcomes, *walked.further) for outcome in outcomes.values()):
        for axes in outcome.outputs:
            yield from axes
        for sizes in outcome.sizes.values():
            for size in sizes if isinstance(sizes, tuple) else (sizes,):
                yield size.axis if isinstance(size, CommonDivisor) else size
        for term in outcome.macs:
            yield from term.axes
    for constraint in walked.labels.divisible:
        yield constraint.axis


def _signatures(classes: Classes, axes: Iterable[LabelArray]) -> SignatureArray:
    """One number a class: equal where classes occur equally often on every axis."""
    signature = np.zeros(int(classes.of.max()) + 1, np.uint64)
    for number, axis in enumerate(axes):
        present, counts = np.unique(classes.of[axis[axis != FIXED]], return_counts=True)
        with np.errstate(over="ignore"):
            signature[present] += _mixed(np.uint64((number + 1) << 24) + counts.astype(np.uint64))
    return signature


@dataclass(frozen=True)
class _Grouping:
    """Collects, for every signature, where its classes occur in parameters."""

    program: Program
    classes: Classes
    signature: SignatureArray
    leaves: Mapping[str, tuple[Axis, ...]]

    def groups(self) -> tuple[list[_Draft], list[_Draft]]:
        """Return the prunable and the pinned groups, in the order of their first parameter."""
        prunable: list[_Draft] = []
        pinned: list[_Draft] = []
        for found in self._occurrences().values():
            for atoms, reason in self._by_reason(found[0].classes):
                members = tuple(entry.member(atoms) for entry in found if np.isin(entry.classes, atoms).any())
                if reason is None and not any(member.parameter in self.program.trainable for member in members):
                    reason = "is held by buffers alone"
                if reason != KERNEL:
                    (prunable if reason is None else pinned).append(_Draft(members, atoms, reason))
        return prunable, pinned

    def _occurrences(self) -> dict[int, list[_Occurrence]]:
        found: dict[int, list[_Occurrence]] = {}
        for name, axes in self.leaves.items():
            for dim, axis in enumerate(axes):
                if axis is None:
                    continue
                own = self.classes.of[axis]
                keys = self.signature[own]
                for key in dict.fromkeys(keys.tolist()):
                    positions = np.flatnonzero(keys == key)
                    found.setdefault(key, []).append(_Occurrence(name, dim, positions, own[positions]))
        return found

    def _by_reason(self, found: LabelArray) -> list[tuple[LabelArray, str | None]]:
        """Atoms in order of first occurrence, split by the reason why they are pinned (None: prunable)."""
        unique, first = np.unique(found, return_index=True)
        atoms = unique[np.argsort(first, kind="stable")]
        reasons = [self.classes.reasons.get(int(atom)) for atom in atoms]
        if len(atoms) == 1 and reasons[0] is None:
            reasons = ["is a single unit, all positions of which are tied together"]
        return [(atoms[[own == reason for own in reasons]], reason) for reason in dict.fromkeys(reasons)]


@dataclass(frozen=True)
class _Occurrence:
    """The places of classes of one signature along one dimension of a parameter."""

    parameter: str
    dim: int
    positions: LabelArray
    classes: LabelArray

    def member(self, atoms: LabelArray) -> Member:
        """[atoms, multiplicity] positions along the dimension, for the given atoms."""
        rank = np.full(int(max(self.classes.max(), atoms.max())) + 1, -1, np.int64)
        rank[atoms] = np.arange(len(atoms))
        mine = rank[self.classes]
        order = np.argsort(mine[mine >= 0], kind="stable")
        return Member(self.parameter, self.dim, self.positions[mine >= 0][order].reshape(len(atoms), -1))


def _steps(
    labels: AxisLabels, classes: Classes, atoms: Sequence[int], group_of: LabelArray, atom_of: LabelArray, options: Options
) -> tuple[list[int], list[tuple[int, ...] | None]]:
    """Return the number of atoms of each group that must leave at a time, and the bins that they must leave from evenly."""
    steps: list[int] = [1] * len(atoms)
    bins: list[tuple[int, ...] | None] = [None] * len(atoms)
    for constraint in labels.divisible:
        found = classes.of[constraint.axis]
        groups = group_of[found]
        parts = max(1, constraint.parts // 4) if constraint.runs and options.norm_groups == "reduced" else constraint.parts
        for group in np.unique(groups[groups >= 0]).tolist():
            multiplicity = int((groups == group).sum()) // atoms[group]
            steps[group] = math.lcm(steps[group], parts // math.gcd(parts, multiplicity))
        alone = len(np.unique(groups)) == 1 and groups[0] >= 0
        if constraint.runs and options.norm_groups == "balanced" and alone:
            group = int(groups[0])
            layout = _bins(atom_of[found], constraint.parts, atoms[group])
            if layout is not None and len(set(layout)) > len(set(bins[group] or ())):
                bins[group] = layout
    return [min(step, count) for step, count in zip(steps, atoms, strict=True)], bins


def _bins(atom_by_position: LabelArray, parts: int, atoms: int) -> tuple[int, ...] | None:
    """Return the run that each atom lies in, when every atom stands once on the axis."""
    if len(atom_by_position) != atoms or len(np.unique(atom_by_position)) != atoms:
        return None
    layout = np.empty(atoms, np.int64)
    layout[atom_by_position] = np.repeat(np.arange(parts), atoms // parts)
    return tuple(layout.tolist())
