"""Find the attributes that must change with a cut: head counts, inner widths, split sizes, widths that only an assertion reads.

The comparison names the module in which the pruned forward first differs from the prediction. The integer attributes around it that may
state a size there are tried with new values, and a change is kept if the forward then agrees further. A change that helps in one module is
made in the other modules of its class as well. Every change is confirmed by the forward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.surgery.attribute_evidence import AttributeEvidence, Use
from proxyprune.surgery.attribute_proposals import AttributeProposals, Path, Proposal, Value, get_attribute, plain
from proxyprune.surgery.comparison import Difference
from proxyprune.surgery.layer_sizes import PrunedLayer, changed_attributes
from proxyprune.surgery.perform import set_attribute
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import AttributeChange, Surgery
from proxyprune.tracing.nodes import output_shapes

_SINGLES_TRIED = 20
_PAIRS_TRIED = 6
_ROUNDS = 400


def layer_attributes(model: nn.Module, prediction: Prediction) -> Iterator[AttributeChange]:
    """Yield changes of the size attributes of torch.nn layers, from the predicted shapes."""
    program = prediction.graph.program
    calls: dict[str, Node] = {}
    for node in program.calls:
        calls.setdefault(program.owners[node.name], node)
    for name, module in model.named_modules():
        if any(name == block or name.startswith(f"{block}.") for block in prediction.removed):
            continue
        shapes = {}
        for local, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            full = f"{name}.{local}" if name else local
            full = program.aliases.get(full, full)
            if isinstance(tensor, Tensor) and full in program.shapes:
                shapes[local] = prediction.shape(full)
        predicted, channels = _predicted_arguments(calls[name], prediction) if name in calls else ({}, None)
        yield from changed_attributes(name, PrunedLayer(module, shapes, predicted, channels))


def _predicted_arguments(node: Node, prediction: Prediction) -> tuple[dict[str, Any], int | None]:
    if not hasattr(node.target, "_schema"):
        return {}, None
    names = [argument.name for argument in node.target._schema.arguments]
    values = {}
    for key, size in prediction.coupling.outcomes[node].sizes.items():
        name = names[key] if isinstance(key, int) else key
        values[name] = [prediction.size(item) for item in size] if isinstance(size, tuple) else prediction.size(size)
    shape = prediction.output_shape(node) if output_shapes(node)[0] else ()
    return values, shape[1] if len(shape) > 1 else None


def obvious_changes(proposals: AttributeProposals, evidence: AttributeEvidence) -> tuple[AttributeChange, ...]:
    """Return attribute changes that need no search; the pruned forward has yet to confirm them.

    A width that no size argument of an op follows is changed only if the forward checks it.
    """
    own = {proposals.change(proposal): (Use.SIZE, Use.CHECK) for proposal in proposals.own_arguments()}
    checked = {proposals.change(proposal): (Use.CHECK,) for proposal in proposals.read_widths()}
    uses = evidence.uses([*checked, *own])
    chosen = {(change.module, change.path): change for change, enough in (*checked.items(), *own.items()) if uses[change] in enough}
    return proposals.ordered(iter(chosen.values()))


def attributes_not_followed(proposals: AttributeProposals, surgery: Surgery, evidence: Sequence[AttributeEvidence]) -> dict[str, str]:
    """Return attributes that equal a size which changed around them and that stay, because the traced forward does not use them.

    Another mode or method of the module (training, a cache, fusing) may use them. `evidence` has one entry for each example call.

    Returns:
        "module.attribute" -> its value and the new sizes, in a sentence.
    """
    changed = {(change.module, change.path) for change in surgery.attributes}
    stay = {change: sizes for change, sizes in proposals.changed_around() if (change.module, change.path) not in changed}
    uses = [of_call.uses(list(stay)) for of_call in evidence]
    return {
        f"{change.module}.{change.path[0]}".removeprefix("."): (
            f"stays {change.before}: the traced forward does not use it as a size. "
            f"A size of {change.before} in this module became {' or '.join(map(str, sizes))}."
        )
        for change, sizes in stay.items()
        if all(of_call[change] is Use.NONE for of_call in uses)
    }


class AttributeSearch:
    """Try proposals on a pruned skeleton until its forward agrees with the prediction.

    Args:
        proposals: Proposals for the unpruned model.
        skeleton: The pruned skeleton; its attributes are changed.
        difference_of: Runs the skeleton, and returns its first difference from the prediction.
        start: Changes to begin with.
        may_be_read: Returns False for an attribute that the forward never reads; it is not tried.
    """

    def __init__(
        self,
        proposals: AttributeProposals,
        skeleton: nn.Module,
        difference_of: Callable[[nn.Module], Difference | None],
        start: Sequence[AttributeChange] = (),
        may_be_read: Callable[[str, Path], bool] | None = None,
    ) -> None:
        self.proposals = proposals
        self.skeleton = skeleton
        self.modules = dict(skeleton.named_modules())
        self._difference_of = difference_of
        self._may_be_read = may_be_read
        self._set_paths: dict[tuple[str, Path], None] = {}
        self._learned: dict[tuple[type[nn.Module], Path], None] = {}
        for change in start:
            self._set(Proposal(change.module, change.path, change.after))

    @property
    def changes(self) -> tuple[AttributeChange, ...]:
        """The changes that were kept, in module order."""
        found = (AttributeChange(name, path, self.proposals.value(name, path), self._current(name, path)) for name, path in self._set_paths)
        return self.proposals.ordered(change for change in found if change.after != change.before)

    def run(self) -> Difference | None:
        """Keep changes that help until the forward agrees; returns the difference that is left, if any."""
        difference = self._difference_of(self.skeleton)
        for _ in range(_ROUNDS):
            if difference is None:
                return None
            better = self._improve(difference)
            if better is difference:
                return difference
            difference = better
        return difference

    def _improve(self, difference: Difference) -> Difference | None:
        candidates = list(itertools.islice(dict.fromkeys(self._candidates(difference)), _SINGLES_TRIED))
        singles: list[tuple[Proposal, ...]] = [(candidate,) for candidate in candidates]
        pairs = itertools.islice(itertools.combinations(candidates, 2), _PAIRS_TRIED)
        tried: set[frozenset[tuple[tuple[str, Path], Value]]] = set()
        for trial in itertools.chain(singles, pairs, self._of_one_size(candidates)):
            if len({(proposal.module, proposal.path) for proposal in trial}) < len(trial):
                continue
            everywhere = [*trial, *(other for proposal in trial for other in self._carried_over(proposal))]
            effect = frozenset({(each.module, each.path): each.after for each in everywhere if self._matters(each)}.items())
            if not effect or effect in tried:  # the run would be one that was made already
                continue
            tried.add(effect)
            set_before = dict(self._set_paths)
            before = [self._set(proposal) for proposal in everywhere]
            found = self._difference_of(self.skeleton)
            if found is None or found.progress > difference.progress:
                self._learned.update({(type(self.modules[proposal.module]), proposal.path): None for proposal in trial})
                return found
            for proposal, value in reversed(list(zip(everywhere, before, strict=True))):
                set_attribute(self.modules[proposal.module], proposal.path, value)
            self._set_paths = set_before
        return difference

    def _of_one_size(self, candidates: Sequence[Proposal]) -> Iterator[tuple[Proposal, ...]]:
        """Yield attributes of one module that state the same size, which an op may take several times (parts of equal size)."""
        alike: dict[tuple[str, Value, Value], dict[Path, Proposal]] = {}
        for each in filter(self._matters, candidates):
            alike.setdefault((each.module, self._current(each.module, each.path), each.after), {}).setdefault(each.path, each)
        yield from (tuple(trial.values()) for trial in alike.values() if len(trial) > 1)

    def _matters(self, proposal: Proposal) -> bool:
        return self._may_be_read is None or self._may_be_read(proposal.module, proposal.path)

    def _current(self, module: str, path: Path) -> Value:
        return plain(get_attribute(self.modules[module], path))

    def _set(self, proposal: Proposal) -> Value:
        """Carry out a proposal; returns the value that it replaces."""
        current = self._current(proposal.module, proposal.path)
        self._set_paths.setdefault((proposal.module, proposal.path))
        set_attribute(self.modules[proposal.module], proposal.path, proposal.after)
        return current

    def _carried_over(self, proposal: Proposal) -> Iterator[Proposal]:
        """Yield the proposals of the same op for the same attribute in the other modules of the class."""
        kind = type(self.modules[proposal.module])
        if proposal.op is None or (kind, proposal.path) in self._learned:
            return
        for name, module in self.modules.items():
            ops = self.proposals.ops(name) if type(module) is kind and name != proposal.module else ()
            if (name, proposal.path) in self._set_paths or proposal.op >= len(ops):
                continue
            same = [other for other in self._new(self.proposals.at_op(name, ops[proposal.op], proposal.op)) if other.path == proposal.path]
            if proposal.rank < len(same):
                yield same[proposal.rank]

    def _candidates(self, difference: Difference) -> Iterator[Proposal]:
        """Yield proposals for the module of a difference, its ancestors and descendants; those of the op itself come first."""
        places = [difference.module]
        if difference.node is not None:
            places.append(self.proposals.prediction.graph.program.owners[difference.node.name])
        holders = list(dict.fromkeys(holder for place in places for holder in self._around(place)))
        for holder in holders:
            ops = self.proposals.ops(holder)
            if difference.node in ops:
                index = ops.index(difference.node)
                yield from self._new(self.proposals.at_op(holder, ops[index], index))
            elif difference.node is not None:
                yield from self._new(self.proposals.at_op(holder, difference.node, None))
        for place in places:
            yield from self._new(self.proposals.near(place, holders))

    def _new(self, proposals: Iterator[Proposal]) -> Iterator[Proposal]:
        """Leave out what is the case already, and blocks that were removed."""
        for proposal in proposals:
            kind = type(self.modules.get(proposal.module))
            if kind is type(self.proposals.modules[proposal.module]) and self._current(proposal.module, proposal.path) != proposal.after:
                yield proposal

    def _around(self, place: str) -> Iterator[str]:
        yield place
        parent = place
        while parent:
            parent = parent.rpartition(".")[0]
            yield parent
        yield from (name for name in self.modules if name != place and (not place or name.startswith(f"{place}.")))
