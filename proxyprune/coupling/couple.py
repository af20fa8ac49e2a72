"""From a traced program to its channel groups.

Two passes over the program. The scouting pass cuts every ambiguous reshape open and watches which factors survive; then one factor is
chosen for each (attention heads before others, then the larger, then the outer), and the second pass walks with these choices. What
belongs together then is put into groups by `proxyprune.coupling.grouping`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.coupling.axes import FIXED, Axis, AxisLabels
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.grouping import Walked, form_groups
from proxyprune.coupling.low_rank import pin_adapters
from proxyprune.coupling.module_relations import relate
from proxyprune.coupling.options import Amendments, Options
from proxyprune.coupling.outcome import Outcome
from proxyprune.coupling.rules.table import TABLE, built_in_rule
from proxyprune.coupling.rules.walk import Factored, Rule, Walk, fixed
from proxyprune.coupling.unreached import pin_unreached
from proxyprune.errors import RuleError
from proxyprune.tracing.nodes import aliases_of, is_tensor, is_unread, op_name, output_shapes, writes_to
from proxyprune.tracing.program import Program

Choices = Mapping[tuple[str, str, int], int | None]


def couple(program: Program, options: Options, model: nn.Module, amendments: Amendments) -> Coupling:
    """Find the channel groups of a program.

    Args:
        program: The traced model.
        options: How norm and convolution groups may shrink.
        model: The traced module, for the few classes in `adapters`.
        amendments: Dimensions to pin or to tie, found by probing.
    """
    scout, factored = _walk_all(program, options, _start(program, model, amendments), [None] * len(program.programs), model)
    if not any(factored):
        return form_groups(program, scout, options)
    walked, _ = _walk_all(program, options, _start(program, model, amendments), _choose(scout.labels, factored), model)
    return form_groups(program, walked, options)


def _walk_all(
    program: Program, options: Options, start: _Start, choices: Sequence[Choices | None], model: nn.Module
) -> tuple[Walked, list[list[Factored]]]:
    """Walk the program and those of further calls with the same labels, so that a cut is valid for all of them."""
    walks = [_walk(one, options, start, chosen) for one, chosen in zip(program.programs, choices, strict=True)]
    pin_unreached(program, model, start.leaves, start.labels, [walked.outcomes for walked, _ in walks])
    if options.adapter_ranks == "keep":
        pin_adapters(program, start.leaves, start.labels)
    first, *others = (walked for walked, _ in walks)
    unknown = dict.fromkeys(name for walked, _ in walks for name in walked.unsupported_ops)
    registered = dict.fromkeys(name for walked, _ in walks for name in walked.registered_ops)
    further = tuple(walked.outcomes for walked in others)
    joint = replace(first, unsupported_ops=tuple(unknown), registered_ops=tuple(registered), further=further)
    return joint, [factored for _, factored in walks]


@dataclass(frozen=True)
class _Start:
    """Labels of the parameters, with what is known before any op is looked at."""

    labels: AxisLabels
    leaves: Mapping[str, tuple[Axis, ...]]


_LOOKUPS = frozenset({"aten.index", "aten.index_select"})


def _start(program: Program, model: nn.Module, amendments: Amendments) -> _Start:
    """Label every dimension of every parameter and floating-point buffer; integers (indices, counters) are never cut."""
    labels = AxisLabels()
    leaves = {
        name: fixed(shape) if name in program.integers else tuple(labels.fresh(size) for size in shape)
        for name, shape in program.shapes.items()
    }
    relate(model, program, leaves, labels)
    for key, reason in amendments.pins.items():
        labels.pin(_leaf(leaves, key), reason)
    for first, second in amendments.ties:
        labels.equate(_leaf(leaves, first), _leaf(leaves, second), f"a forward that takes {first} and {second} for one width")
    return _Start(labels, leaves)


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
    return Outcome(outputs=tuple(fixed(shape) for shape in output_shapes(node)), costed=False, known=False)


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


def _choose(labels: AxisLabels, factored: list[list[Factored]]) -> list[dict[tuple[str, str, int], int | None]]:
    """Which factor of every ambiguous reshape may shrink, for each program.

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
