"""Channel groups: from axis classes to the parameter slices that must shrink together.

Two passes over the program. The scouting pass cuts every ambiguous reshape open and watches which factors survive; then one factor is
chosen for each (attention heads before others, then the larger, then the outer), and the second pass walks with these choices. Positions
with the same class leave together (an atom); atoms that occur equally often on every axis of the program are interchangeable and form
one channel group, so that every size in the program is linear in the number of atoms kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from proxyprune.axes import FIXED, Axis, Classes, LabelArray, Labels
from proxyprune.graph import ChannelGroup, Member
from proxyprune.rules import TABLE, Factored, Options, Outcome, Rule, Size, Term, Walk, op_name, output_shapes
from proxyprune.rules.base import fixed
from proxyprune.rules.pointwise import is_pointwise, pointwise
from proxyprune.capture import Program

_TENSORLESS_OPS = frozenset({"aten.sym_size", "aten._local_scalar_dense"})


@dataclass(frozen=True, eq=False)
class Coupling:
    """The coupled program.

    Attributes:
        groups: Channel groups, prunable ones first.
        outcomes: Node -> what its rule said.
        parameter_axes: Parameter or buffer -> class of every position of every dimension (-1 where fixed), None for fixed dimensions.
        atom_of: Axis class -> (index of the prunable group, atom in it).
        unsupported_ops: Ops without a rule.
        uncosted_ops: Ops that may multiply and have no cost rule.
        classes: The solved axis classes.
    """

    groups: tuple[ChannelGroup, ...]
    outcomes: Mapping[Node, Outcome]
    parameter_axes: Mapping[str, tuple[Axis, ...]]
    group_of_class: LabelArray
    atom_of_class: LabelArray
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    classes: Classes = field(repr=False)

    def count(self, axis: LabelArray) -> tuple[int, dict[int, int]]:
        """Kept size of an axis as constant + sum of coefficient * atoms kept, by prunable group."""
        groups = self.group_of_class[self.classes.of[axis]]
        constant = int((groups < 0).sum())
        coefficients: dict[int, int] = {}
        present, counts = np.unique(groups[groups >= 0], return_counts=True)
        for group, positions in zip(present.tolist(), counts.tolist(), strict=True):
            coefficients[group] = positions // self.groups[group].atoms
        return constant, coefficients

    def kept_positions(self, axis: LabelArray, kept: list[np.ndarray]) -> LabelArray:
        """Positions of an axis that stay when `kept[g]` (bool by atom) says which atoms of group g stay."""
        classes = self.classes.of[axis]
        groups, atoms = self.group_of_class[classes], self.atom_of_class[classes]
        stays = np.ones(len(axis), dtype=bool)
        for group in np.unique(groups[groups >= 0]).tolist():
            here = groups == group
            stays[here] = kept[group][atoms[here]]
        return np.flatnonzero(stays)


@dataclass(frozen=True)
class Amendments:
    """What probing found out that no op shows; part of a plan's options, so that the same groups are found again.

    Attributes:
        pins: "parameter:dim" -> why this dimension must stay.
        ties: Pairs of "parameter:dim" of equal size whose positions leave pairwise together.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pins or self.ties)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"pins": dict(self.pins), "ties": [list(pair) for pair in self.ties]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Amendments:
        """The inverse of `to_dict`."""
        return cls(dict(data.get("pins", {})), tuple((str(a), str(b)) for a, b in data.get("ties", [])))


def couple(program: Program, options: Options, model: nn.Module, amendments: Amendments) -> Coupling:
    """Find the channel groups of a program.

    Args:
        program: The traced model.
        options: How norm and convolution groups may shrink.
        model: The traced module, for the few classes in `adapters`.
        amendments: Dimensions to pin or to tie, found by probing.
    """
    scout, _ = _walk(program, options, model, amendments, choices=None)
    choices = _choose(scout.labels, scout.factored)
    if scout.factored:
        walk, unsupported = _walk(program, options, model, amendments, choices=choices)
    else:
        walk, unsupported = scout, _unsupported(program)
    return _form_groups(program, walk, unsupported, options)


def _walk(
    program: Program,
    options: Options,
    model: nn.Module,
    amendments: Amendments,
    choices: Mapping[tuple[str, str, int], int | None] | None,
) -> tuple[Walk, tuple[str, ...]]:
    from proxyprune.adapters import relate  # adapters know modules, rules know ops; only here do they meet

    walk = Walk(program, options, Labels(), choices)
    leaves = _label_parameters(program, walk.labels)
    relate(model, program, leaves, walk.labels)
    for key, reason in amendments.pins.items():
        walk.labels.pin(_leaf(leaves, key), reason)
    for first, second in amendments.ties:
        walk.labels.equate(_leaf(leaves, first), _leaf(leaves, second), f"a forward that takes {first} and {second} for one width")
    unknown: list[str] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = program.state.get(node.name)
            axes = leaves[name] if name is not None else fixed(_placeholder_shape(node))
            walk.outputs[node], walk.zeros[node] = (axes,), name is not None
        elif node.op == "call_function":
            outcome = _apply_rule(walk, node, unknown)
            walk.outputs[node], walk.zeros[node] = outcome.outputs, outcome.zero
            node.meta["outcome"] = outcome
        elif node.op == "get_attr":
            walk.outputs[node], walk.zeros[node] = (fixed(_placeholder_shape(node)),), False
        elif node.op == "output":
            for result in node.all_input_nodes:
                for axis in walk.axes(result):
                    walk.labels.pin(axis, "is an output of the model")
    walk.leaves = leaves  # type: ignore[attr-defined]
    return walk, tuple(dict.fromkeys(unknown))


def _leaf(leaves: Mapping[str, tuple[Axis, ...]], key: str) -> Axis:
    name, _, dim = key.rpartition(":")
    return leaves[name][int(dim)]


def _placeholder_shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def rule_of(node: Node) -> Rule | None:
    """The rule for an op; elementwise ops are recognised by torch's own tag."""
    name = op_name(node)
    if is_pointwise(node) and "prelu" not in name:
        return pointwise
    return TABLE.get(name)


def _unsupported(program: Program) -> tuple[str, ...]:
    return tuple(dict.fromkeys(op_name(node) for node in program.calls if rule_of(node) is None))


def _apply_rule(walk: Walk, node: Node, unknown: list[str]) -> Outcome:
    rule = rule_of(node)
    if rule is None:
        unknown.append(op_name(node))
        walk.pin_all(node, f"goes into {walk.where(node)}, an op without an axis rule")
        return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)), costed=False)
    return rule(walk, node)


def _label_parameters(program: Program, labels: Labels) -> dict[str, tuple[Axis, ...]]:
    """Every dimension of every parameter and floating-point buffer; integers (indices, counters) are never cut."""
    return {
        name: fixed(shape) if name in program.integers else tuple(labels.fresh(size) for size in shape)
        for name, shape in program.shapes.items()
    }


def _choose(labels: Labels, factored: list[Factored]) -> dict[tuple[str, str, int], int | None]:
    """Which factor of every ambiguous reshape may shrink."""
    if not factored:
        return {}
    classes = labels.solve()
    heads: set[int] = set()
    for axis in labels.heads:
        heads.update(classes.of[axis[axis != FIXED]].tolist())
    state: dict[int, bool] = {}  # class -> may shrink, as decided by an earlier reshape
    choices: dict[tuple[str, str, int], int | None] = {}
    for entry in factored:
        candidates = []
        for k, axis in enumerate(entry.factors):
            if axis is None:
                continue
            free = classes.resolve(axis)
            distinct = np.unique(free[free >= 0])
            if len(distinct) < 2 or any(state.get(c) is False for c in distinct.tolist()):
                continue
            active = any(state.get(c) for c in distinct.tolist())
            is_head = bool(heads.intersection(distinct.tolist()))
            candidates.append(((active, is_head, len(distinct), -k), k, distinct))
        if not candidates:
            choices[entry.key] = None
            continue
        _, best, winner = max(candidates, key=lambda candidate: candidate[0])
        choices[entry.key] = best
        state.update(dict.fromkeys(winner.tolist(), True))
        for _, k, distinct in candidates:
            if k != best:
                for label_class in distinct.tolist():
                    state.setdefault(label_class, False)
    return choices


_MIX = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scatter 64-bit integers (splitmix64 finaliser), so that sums of them make signatures."""
    with np.errstate(over="ignore"):
        values = values.astype(np.uint64) * _MIX
        values ^= values >> np.uint64(30)
        values *= np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(27)
        values *= np.uint64(0x94D049BB133111EB)
        values ^= values >> np.uint64(31)
    return values


def _form_groups(program: Program, walk: Walk, unsupported: tuple[str, ...], options: Options) -> Coupling:
    classes = walk.labels.solve()
    outcomes: dict[Node, Outcome] = {node: node.meta.pop("outcome") for node in program.calls}
    leaves: dict[str, tuple[Axis, ...]] = walk.leaves  # type: ignore[attr-defined]
    signature = _signatures(classes, _every_axis(walk, outcomes, leaves))
    builder = _GroupBuilder(classes, signature, leaves)
    prunable, pinned = builder.groups(program)
    group_of = np.full(int(classes.of.max()) + 1, -1, np.int64)
    atom_of = np.full(int(classes.of.max()) + 1, -1, np.int64)
    for index, (_, atoms, _) in enumerate(prunable):
        group_of[atoms] = index
        atom_of[atoms] = np.arange(len(atoms))
    steps, bins = _steps(walk, classes, [atoms for _, atoms, _ in prunable], group_of, atom_of, options)
    groups = [
        _group(members, len(atoms), None, steps[index], bins[index]) for index, (members, atoms, _) in enumerate(prunable)
    ]
    groups += [_group(members, len(atoms), reason, 1, None) for members, atoms, reason in pinned]
    uncosted = tuple(dict.fromkeys(op_name(node) for node, outcome in outcomes.items() if not outcome.costed and _has_tensor(node)))
    return Coupling(tuple(groups), outcomes, leaves, group_of, atom_of, unsupported, uncosted, classes)


def _has_tensor(node: Node) -> bool:
    return any(output_shapes(node))


def _group(members: tuple[Member, ...], atoms: int, reason: str | None, step: int, bins: tuple[int, ...] | None) -> ChannelGroup:
    first = members[0]
    width = int(first.positions.size)
    return ChannelGroup(
        id=f"{first.parameter}:{first.dim}" + ("" if first.positions.flat[0] == 0 else f"@{int(first.positions.flat[0])}"),
        width=width,
        unit=step * (width // atoms),
        members=members,
        pinned=reason,
        atoms=atoms,
        step=step,
        bins=bins,
    )


def _every_axis(walk: Walk, outcomes: Mapping[Node, Outcome], leaves: Mapping[str, tuple[Axis, ...]]) -> Iterable[LabelArray]:
    seen: set[int] = set()

    def new(axis: Axis | Size) -> bool:
        if not isinstance(axis, np.ndarray) or id(axis) in seen:
            return False
        seen.add(id(axis))
        return True

    for axes in leaves.values():
        yield from (axis for axis in axes if new(axis))  # type: ignore[misc]
    for outcome in outcomes.values():
        for axes in outcome.outputs:
            yield from (axis for axis in axes if new(axis))  # type: ignore[misc]
        for sizes in outcome.sizes.values():
            for size in sizes if isinstance(sizes, tuple) else (sizes,):
                if new(size):
                    yield size  # type: ignore[misc]
        for term in outcome.macs:
            yield from (axis for axis in term.axes if new(axis))
    for constraint in walk.labels.divisible:
        if new(constraint.axis):
            yield constraint.axis


def _signatures(classes: Classes, axes: Iterable[LabelArray]) -> np.ndarray:
    """One number a class: equal where classes occur equally often on every axis."""
    signature = np.zeros(int(classes.of.max()) + 1, np.uint64)
    for number, axis in enumerate(axes):
        present, counts = np.unique(classes.of[axis[axis != FIXED]], return_counts=True)
        with np.errstate(over="ignore"):
            signature[present] += _mixed(np.uint64((number + 1) << 24) + counts.astype(np.uint64))
    return signature


@dataclass
class _GroupBuilder:
    classes: Classes
    signature: np.ndarray
    leaves: Mapping[str, tuple[Axis, ...]]

    def groups(self, program: Program) -> tuple[list, list]:  # type: ignore[type-arg]
        """(members, atoms, reason) of the prunable and of the pinned groups, in the order of their first parameter."""
        occurrences: dict[int, list[tuple[str, int, np.ndarray, np.ndarray]]] = {}
        order: list[int] = []
        for name, axes in self.leaves.items():
            for dim, axis in enumerate(axes):
                if axis is None:
                    continue
                found = self.classes.of[axis]
                keys = self.signature[found]
                for key in np.unique(keys).tolist():
                    positions = np.flatnonzero(keys == key)
                    if key not in occurrences:
                        occurrences[key] = []
                        order.append(key)
                    occurrences[key].append((name, dim, positions, found[positions]))
        prunable, pinned = [], []
        for key in order:
            for atoms, reason in self._by_reason(occurrences[key][0][3]):
                members = tuple(
                    Member(name, dim, self._rows(positions, found, atoms))
                    for name, dim, positions, found in occurrences[key]
                    if np.isin(found, atoms).any()
                )
                if reason == "is a kernel or spatial dimension":
                    continue
                if reason is None and not any(member.parameter in program.trainable for member in members):
                    reason = "is held by buffers alone"
                (prunable if reason is None else pinned).append((members, atoms, reason))
        return prunable, pinned

    def _by_reason(self, found: np.ndarray) -> list[tuple[np.ndarray, str | None]]:
        """Atoms in order of first occurrence, split by the reason why they are pinned (None: prunable)."""
        unique, first = np.unique(found, return_index=True)
        atoms = unique[np.argsort(first, kind="stable")]
        fixed_class = int(self.classes.of[FIXED])
        reasons = [self.classes.reasons.get(int(atom), None if int(atom) != fixed_class else "is fixed") for atom in atoms]
        if len(atoms) == 1 and reasons[0] is None:
            reasons = ["is a single unit, all positions of which are tied together"]
        return [(atoms[[r == reason for r in reasons]], reason) for reason in dict.fromkeys(reasons)]

    @staticmethod
    def _rows(positions: np.ndarray, found: np.ndarray, atoms: np.ndarray) -> np.ndarray:
        """[atoms, multiplicity] positions along the member's dimension."""
        rank = np.full(int(max(found.max(), atoms.max())) + 1, -1, np.int64)
        rank[atoms] = np.arange(len(atoms))
        mine = rank[found]
        keep = mine >= 0
        order = np.argsort(mine[keep], kind="stable")
        return positions[keep][order].reshape(len(atoms), -1)


def _steps(
    walk: Walk, classes: Classes, atoms: list[np.ndarray], group_of: np.ndarray, atom_of: np.ndarray, options: Options
) -> tuple[list[int], list[tuple[int, ...] | None]]:
    """How many atoms must leave at a time, and the bins they must leave from evenly."""
    steps, bins = [1] * len(atoms), [None] * len(atoms)  # type: ignore[var-annotated]
    for constraint in walk.labels.divisible:
        found = classes.of[constraint.axis]
        groups = group_of[found]
        parts = constraint.parts
        if options.norm_groups == "reduced":
            parts = max(1, parts // 4)
        for group in np.unique(groups[groups >= 0]).tolist():
            multiplicity = int((groups == group).sum()) // len(atoms[group])
            needed = parts // math.gcd(parts, multiplicity)
            steps[group] = math.lcm(steps[group], needed)
        if constraint.balanced and options.norm_groups == "balanced" and len(np.unique(groups)) == 1 and groups[0] >= 0:
            runs = atom_of[found].reshape(constraint.parts, -1)
            if len(np.unique(runs)) == runs.size == len(atoms[int(groups[0])]):
                layout = np.empty(runs.size, np.int64)
                for number, run in enumerate(runs):
                    layout[run] = number
                proposal = tuple(layout.tolist())
                current = bins[int(groups[0])]
                if current is None or max(current) < max(proposal):
                    bins[int(groups[0])] = proposal  # type: ignore[call-overload]
    for group, count in enumerate(steps):
        if count >= len(atoms[group]):
            steps[group] = len(atoms[group])
    return steps, bins  # type: ignore[return-value]
