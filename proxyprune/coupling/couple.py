"""From a traced program to its channel groups.

Two passes over the program. The scouting pass cuts every ambiguous reshape open and watches which factors survive; then one factor is
chosen for each (attention heads before others, then the larger, then the outer), and the second pass walks with these choices. What
belongs together then is put into groups by `proxyprune.coupling.grouping`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.coupling.axes import FIXED, Axis, AxisLabels, Mark
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.grouping import Walked, form_groups
from proxyprune.coupling.low_rank import Adapter, adapters, pin_adapters
from proxyprune.coupling.module_relations import relate
from proxyprune.coupling.options import Amendments, Options
from proxyprune.coupling.outcome import Outcome, Term
from proxyprune.coupling.rules.table import TABLE, built_in_rule
from proxyprune.coupling.rules.walk import Factored, Rule, Walk, fixed
from proxyprune.coupling.rules.whole_cost import whole_cost
from proxyprune.coupling.unreached import pin_unreached
from proxyprune.coupling.unread import pin_unread
from proxyprune.errors import RuleError
from proxyprune.tracing.nodes import aliases_of, is_tensor, is_unread, op_name, output_shapes, writes_to
from proxyprune.tracing.program import Program

Choices = Mapping[tuple[str, str, int], int | None]
_ChoicesKey = tuple[tuple[tuple[tuple[str, str, int], int | None], ...] | None, ...]


def couple(program: Program, options: Options, model: nn.Module, amendments: Amendments) -> Coupling:
    """Find the channel groups of a program; see `Coupler.couple`."""
    return Coupler(program, options).couple(model, amendments)


_WALKS_KEPT = 4


@dataclass(eq=False)
class Coupler:
    """Finds the channel groups of one program, for any amendments.

    Amendments are relations between parameters, recorded before any rule runs. The only way in which a rule reads relations is
    `AxisLabels.may_shrink`. A walk is therefore reused for other amendments, unless they change an answer of `may_shrink`.

    Attributes:
        program: The traced model, with the programs of further calls.
        options: How norm and convolution groups may shrink.
    """

    program: Program
    options: Options
    _walks: dict[_ChoicesKey, _WalkedFrom] = field(default_factory=dict, repr=False)

    def couple(self, model: nn.Module, amendments: Amendments) -> Coupling:
        """Find the channel groups.

        Args:
            model: The traced module, the same in every call; for the few classes in `module_relations`.
            amendments: Dimensions to pin or to tie, found by probing.
        """
        scout = self._walked(model, amendments, [None] * len(self.program.programs))
        factored = scout.factored
        if not any(factored):
            return form_groups(self.program, self._joint(scout, model), self.options)
        chosen = _choose(self._joint(scout, model).labels, factored)
        return form_groups(self.program, self._joint(self._walked(model, amendments, chosen), model), self.options)

    def _walked(self, model: nn.Module, amendments: Amendments, choices: Sequence[Choices | None]) -> _WalkedFrom:
        """Walk the program and those of further calls with the same labels, so that a cut is valid for all of them."""
        key = tuple(None if chosen is None else tuple(chosen.items()) for chosen in choices)
        known = self._walks.pop(key, None)
        walked = None if known is None else known.amended(amendments)
        if walked is None:
            walked = self._walk_all(model, amendments, choices)
        self._walks[key] = walked  # the latest is last
        while len(self._walks) > _WALKS_KEPT:
            del self._walks[next(iter(self._walks))]
        return walked

    def _walk_all(self, model: nn.Module, amendments: Amendments, choices: Sequence[Choices | None]) -> _WalkedFrom:
        start, before, after = _start(self.program, model, amendments)
        walks = [_walk(one, self.options, start, chosen) for one, chosen in zip(self.program.programs, choices, strict=True)]
        return _WalkedFrom(start, before, after, [walked for walked, _ in walks], [factored for _, factored in walks])

    def _joint(self, walk: _WalkedFrom, model: nn.Module) -> Walked:
        """Return the walks as one, with what follows from all of them pinned."""
        labels, leaves = walk.start.labels.copied(), walk.start.leaves
        outcomes = [walked.outcomes for walked in walk.walks]
        pin_unreached(self.program, model, leaves, labels, outcomes)
        pin_unread(self.program, leaves, labels, outcomes)
        if self.options.adapter_ranks == "keep":
            pin_adapters(self._adapters, leaves, labels)
        first, *others = walk.walks
        unknown = dict.fromkeys(name for walked in walk.walks for name in walked.unsupported_ops)
        registered = dict.fromkeys(name for walked in walk.walks for name in walked.registered_ops)
        further = tuple(walked.outcomes for walked in others)
        return replace(first, labels=labels, unsupported_ops=tuple(unknown), registered_ops=tuple(registered), further=further)

    @cached_property
    def _adapters(self) -> tuple[Adapter, ...]:
        return tuple(adapters(self.program))


@dataclass(frozen=True)
class _Start:
    """Labels of the parameters, with what is known before any op is looked at."""

    labels: AxisLabels
    leaves: Mapping[str, tuple[Axis, ...]]


@dataclass(frozen=True)
class _WalkedFrom:
    """Walks, with the amendments that they began with: the relations of `start.labels` between two marks."""

    start: _Start
    before: Mark
    after: Mark
    walks: Sequence[Walked]
    factored: Sequence[Sequence[Factored]]

    def amended(self, amendments: Amendments) -> _WalkedFrom | None:
        """Return the same walks with other amendments; None if the rules must run again."""
        if any(walked.registered_ops for walked in self.walks):  # registered rules may depend on anything
            return None
        others = AxisLabels()
        _amend(self.start.leaves, others, amendments)
        labels = self.start.labels.with_relations(self.before, self.after, others)
        if labels is None:
            return None
        after = Mark(self.before.pins + others.mark.pins, self.before.edges + others.mark.edges)
        walks = [replace(walked, labels=labels) for walked in self.walks]
        return replace(self, start=replace(self.start, labels=labels), after=after, walks=walks)


_LOOKUPS = frozenset({"aten.index", "aten.index_select"})


def _start(program: Program, model: nn.Module, amendments: Amendments) -> tuple[_Start, Mark, Mark]:
    """Label every dimension of every parameter and floating-point buffer; integers (indices, counters) are never cut.

    Returns:
        The labels, and the marks between which the amendments were recorded.
    """
    labels = AxisLabels()
    leaves = {
        name: fixed(shape) if name in program.integers else tuple(labels.fresh(size) for size in shape)
        for name, shape in program.shapes.items()
    }
    relate(model, program, leaves, labels)
    before = labels.mark
    _amend(leaves, labels, amendments)
    return _Start(labels, leaves), before, labels.mark


def _amend(leaves: Mapping[str, tuple[Axis, ...]], labels: AxisLabels, amendments: Amendments) -> None:
    """Record amendments."""
    for key, reason in amendments.pins.items():
        labels.pin(_leaf(leaves, key), reason)
    for first, second in amendments.ties:
        labels.equate(_leaf(leaves, first), _leaf(leaves, second), f"a forward that takes {first} and {second} for one width")


def _walk(program: Program, options: Options, start: _Start, choices: Choices | None) -> tuple[Walked, list[Factored]]:
    """Apply every op's rule once, in execution order."""
    walk = Walk(program, options, start.labels, choices)
    outcomes: dict[Node, Outcome] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = program.state.get(node.name)
            axes = start.leaves[name] if name is not None else fixed(_shape(node))
            walk.outputs[node], walk.zeros[node] = (axes,), name is not None
            if name is not None:
                (walk.weights if name in program.trainable else walk.constants).add(node)
        elif node.op == "call_function":
            outcomes[node] = _outcome(walk, node)
            walk.outputs[node], walk.zeros[node] = outcomes[node].outputs, outcomes[node].zero
            _note_origin(walk, node)
        elif node.op == "get_attr":
            walk.constants.add(node)
            walk.outputs[node], walk.zeros[node] = (fixed(_shape(node)),), False
        elif node.op == "output":
            for result in node.all_input_nodes:
                for axis in walk.axes(result):
                    walk.labels.pin(axis, "is an output of the model")
    unknown = tuple(dict.fromkeys(op_name(node) for node, outcome in outcomes.items() if not outcome.known))
    registered = tuple(dict.fromkeys(name for name in map(op_name, outcomes) if name in options.rules))
    return Walked(walk.labels, start.leaves, outcomes, unknown, registered), walk.factored


def _note_origin(walk: Walk, node: Node) -> None:
    """Note whether an op returns a weight or a constant.

    A weight is made of parameters, and of constants such as the masks of `torch.nn.utils.prune`. A matrix that is picked by number from a
    stack of them (experts) is a weight, whatever picks it. A buffer into which a signal is written is a signal.
    """
    sources, target = node.all_input_nodes, writes_to(node)
    if op_name(node) in _LOOKUPS and walk.is_weight(sources[0]):
        if len(walk.shape(sources[0])) > 2:
            walk.weights.add(node)
    elif sources and all(source in walk.weights or source in walk.constants for source in sources):
        (walk.weights if any(map(walk.is_weight, sources)) else walk.constants).add(node)
    elif target is not None:
        walk.constants.difference_update(aliases_of(target))


def _leaf(leaves: Mapping[str, tuple[Axis, ...]], key: str) -> Axis:
    name, _, dim = key.rpartition(":")
    return leaves[name][int(dim)]


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def _rule_of(node: Node) -> Rule | None:
    """Return the package's own rule for an op."""
    name = op_name(node)
    return built_in_rule(name, node.target) if is_tensor(node) else TABLE.get(name)


def _outcome(walk: Walk, node: Node) -> Outcome:
    if is_unread(node):
        return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)))
    if op_name(node) in walk.options.rules:
        return _registered_outcome(walk, node)
    rule = _rule_of(node)
    if rule is not None:
        try:
            outcome = rule(walk, node)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError):  # arguments that the rule does not know: as without a rule
            outcome = None
        if outcome is not None and _fits(node, outcome):
            return outcome
    walk.pin_all(node, f"goes into {walk.where(node)}, an op without an axis rule")
    macs = whole_cost(node)
    terms = (Term(macs),) if macs else ()
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)), macs=terms, costed=macs is not None, known=False)


def _registered_outcome(walk: Walk, node: Node) -> Outcome:
    """Return the outcome of a registered rule.

    Raises:
        RuleError: If the rule raises, or returns axes that do not fit the shapes of the op's outputs.
    """
    try:
        outcome = walk.options.rules[op_name(node)](walk, node)
    except Exception as error:
        raise RuleError(
            f"The rule registered for {op_name(node)} raised {type(error).__name__}: {error} (at {walk.where(node)}). "
            "Correct the rule, or remove its registration."
        ) from error
    if not isinstance(outcome, Outcome) or not _fits(node, outcome):
        found = [[None if axis is None else len(axis) for axis in axes] for axes in getattr(outcome, "outputs", ())]
        raise RuleError(
            f"The rule registered for {op_name(node)} must return an Outcome with one axis for each dimension of each output: "
            f"the outputs have shapes {[list(shape) for shape in output_shapes(node)]}, the rule returned axes of lengths {found}."
        )
    return outcome


def _fits(node: Node, outcome: Outcome) -> bool:
    """Every output has an axis for each dimension, with a label for each position."""
    shapes = output_shapes(node)
    return len(shapes) == len(outcome.outputs) and all(
        len(axes) == len(shape) and all(axis is None or len(axis) == size for axis, size in zip(axes, shape, strict=True))
        for axes, shape in zip(outcome.outputs, shapes, strict=True)
    )


def _choose(labels: AxisLabels, factored: Sequence[Sequence[Factored]]) -> list[dict[tuple[str, str, int], int | None]]:
    """Return the factor of every ambiguous reshape that may shrink, for each program.

    A class of labels that one reshape lets shrink, or keeps, does so in all of them.
    """
    classes = labels.solve()
    heads = {c for axis in labels.heads for c in classes.of[axis[axis != FIXED]].tolist()}
    shrinks: dict[int, bool] = {}
    choices: list[dict[tuple[str, str, int], int | None]] = [{} for _ in factored]
    for number, entry in ((number, entry) for number, entries in enumerate(factored) for entry in entries):
        candidates = []
        for k, axis in enumerate(entry.factors):
            distinct = set() if axis is None else set(classes.resolve(axis).tolist()) - {-1}
            if len(distinct) >= 2 and not any(shrinks.get(c) is False for c in distinct):
                chosen_before, is_head = any(shrinks.get(c) for c in distinct), bool(heads & distinct)
                candidates.append(((chosen_before, is_head, len(distinct), -k), k, distinct))
        best = max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None
        choices[number][entry.key] = best
        for _, k, distinct in sorted(candidates, key=lambda candidate: candidate[1] != best):
            for label_class in distinct:
                shrinks.setdefault(label_class, k == best)
    return choices
