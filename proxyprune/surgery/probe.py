"""`trace`: read a model once, and probe what the ops alone do not show."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from proxyprune.coupling.groups import ChannelGroup, Member
from proxyprune.graph.build import calls_of, completed, regrouped
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.surgery.attribute_evidence import AttributeEvidence, evidence_for
from proxyprune.surgery.comparison import Difference
from proxyprune.surgery.find_surgery import blamed_groups, find_surgery
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.model_call import ExampleInputs

_TIES_TRIED = 8
_PINS_TRIED = 6
_DRAWS = 3
_PROBE_SEED = 0

_Evidence = Sequence[AttributeEvidence]
"""For each example call, in order."""


def probe_groups(
    model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, evidence: Sequence[AttributeEvidence] | None = None
) -> ModelGraph:
    """Amend the groups until the forward follows when every group loses a few steps.

    Where it does not follow, two widths that it takes for one are tied if that helps (a head dimension computed as the width of the stream
    divided by the number of heads); otherwise the groups that are cut there are pinned.
    """
    evidence = evidence or evidence_for(model, graph, example_inputs)
    difference = _probe(model, example_inputs, graph, evidence)
    found = graph
    for _ in range(2 * len(graph.prunable) + 2):
        if difference is None:
            break
        found, difference = amend(model, example_inputs, found, difference, evidence)
    return graph if found is graph else completed(model, found)


@dataclass(frozen=True)
class Finding:
    """A difference, with the groups that are cut where it shows.

    `depth` counts the probes that passed before: shallow cuts come first, then deep ones, which show what integer division hides, then
    drawn ones.
    """

    depth: int
    difference: Difference
    groups: tuple[str, ...]

    @property
    def progress(self) -> tuple[int, int]:
        """The progress of the forward."""
        return self.depth, self.difference.progress


def _probe(model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, evidence: _Evidence) -> Finding | None:
    for depth, cuts in enumerate(_probes(graph)):
        for number, (view, inputs) in enumerate(calls_of(graph, example_inputs)):
            prediction = Prediction(view, cuts, frozenset())
            if all(mask.all() for mask in prediction.kept):
                continue
            difference = find_surgery(model, prediction, inputs, evidence[number]).difference
            if difference is not None:
                return Finding(depth * len(graph.program.programs) + number, difference, blamed_groups(prediction, difference))
    return None


def amend(
    model: nn.Module, example_inputs: ExampleInputs, graph: ModelGraph, finding: Finding, evidence: _Evidence
) -> tuple[ModelGraph, Finding | None]:
    """One amendment that gets the forward further, and what is found then."""
    for ties in _possible_ties(graph, finding):
        tied = regrouped(model, graph, replace(graph.amendments, ties=(*graph.amendments.ties, *ties)))
        found = _probe(model, example_inputs, tied, evidence)
        if len(tied.prunable) >= 1 and (found is None or found.progress > finding.progress):
            return tied, found
    module = finding.difference.module or "the model"
    reason = f"is not followed by the forward of {module}: {finding.difference.message}"
    for group in finding.groups[:_PINS_TRIED] if len(finding.groups) > 1 else ():  # one may be enough
        pinned = _pinned(model, graph, (group,), reason)
        found = _probe(model, example_inputs, pinned, evidence)
        if found is None or found.progress > finding.progress:
            return pinned, found
    pinned = _pinned(model, graph, finding.groups, reason)
    return pinned, _probe(model, example_inputs, pinned, evidence)


def _possible_ties(graph: ModelGraph, finding: Finding) -> Iterator[tuple[tuple[str, str], ...]]:
    """Pairs of equally long parameter dimensions inside the module, of two groups, one of them cut where the difference shows.

    Modules of the same class get the same tie.
    """
    owner = graph.program.owner(finding.difference.node) if finding.difference.node is not None else finding.difference.module
    tried: set[frozenset[str]] = set()
    for module in dict.fromkeys((finding.difference.module, owner)):
        members = [(member, group) for group in graph.prunable for member in group.members if _inside(member, module)]
        whole = [(m, g) for m, g in members if m.positions.size == graph.program.shapes[m.parameter][m.dim]]
        blamed = [(m, g) for m, g in whole if g.id in finding.groups]
        for (first, one), (second, other) in itertools.product(blamed, whole):
            pair = frozenset((one.id, other.id))
            if len(pair) < 2 or pair in tried or first.positions.size != second.positions.size:
                continue
            if len(tried) == _TIES_TRIED:
                return
            tried.add(pair)
            local = [f"{m.parameter[len(module) + bool(module) :]}:{m.dim}" for m in (first, second)]
            alike = [name for name, kind in graph.program.classes.items() if kind == graph.program.classes[module]]
            pairs = [(_joined(name, local[0]), _joined(name, local[1])) for name in alike]
            yield tuple(keys for keys in pairs if _same_size(graph, *keys))


def _inside(member: Member, module: str) -> bool:
    return not module or member.parameter.startswith(f"{module}.")


def _joined(module: str, local: str) -> str:
    return f"{module}.{local}" if module else local


def _same_size(graph: ModelGraph, first: str, second: str) -> bool:
    sizes = []
    for key in (first, second):
        name, _, dim = key.rpartition(":")
        if name not in graph.program.shapes or len(graph.program.shapes[name]) <= int(dim):
            return False
        sizes.append(graph.program.shapes[name][int(dim)])
    return sizes[0] == sizes[1] > 1


def with_pins(model: nn.Module, graph: ModelGraph, groups: tuple[str, ...], reason: str) -> ModelGraph:
    """Return the graph with some groups pinned, and with them the groups that stand at the same place in other layers."""
    return completed(model, _pinned(model, graph, groups, reason))


def _pinned(model: nn.Module, graph: ModelGraph, groups: tuple[str, ...], reason: str) -> ModelGraph:
    """Return the graph with some groups pinned, with the blocks and the cost of the old groups."""
    places = {_place(graph.by_id[group]) for group in groups}
    alike = [group for group in graph.prunable if _place(group) in places]
    pins = dict(graph.amendments.pins)
    for group in alike:
        first = group.members[0]
        pins[f"{first.parameter}:{first.dim}"] = reason
    return regrouped(model, graph, replace(graph.amendments, pins=pins))


def _place(group: ChannelGroup) -> tuple[str, int]:
    """Return the place of a group, the numbers of the layers left out: "blocks.3.attn.qkv.weight" is at "blocks.#.attn.qkv.weight"."""
    return re.sub(r"\d+", "#", group.members[0].parameter), group.members[0].dim


def _probes(graph: ModelGraph) -> Iterator[list[NDArray[np.bool_]]]:
    """Shallow cuts, deep ones, and some that cut every group by its own share, drawn from a fixed seed.

    A width that a forward divides by another still comes out right where both lose the same share; a draw that leaves one of them
    whole, or cuts it further, distinguishes them.
    """
    yield _distinct_cuts(graph)
    yield [_fewer(group, _steps_to_floor(group)) for group in graph.prunable]
    draw = random.Random(_PROBE_SEED)
    for _ in range(_DRAWS):
        yield [_fewer(group, draw.choice((0, draw.randint(0, _steps_to_floor(group))))) for group in graph.prunable]


def _distinct_cuts(graph: ModelGraph) -> list[NDArray[np.bool_]]:
    """Cut every group by a few steps, groups of one width by different numbers, so that no two widths agree by chance."""
    seen: dict[int, int] = {}
    masks = []
    for group in graph.prunable:
        number = seen.get(group.width, 0)
        seen[group.width] = number + 1
        masks.append(_fewer(group, 1 + number % max(1, _steps_to_floor(group))))
    return masks


def _steps_to_floor(group: ChannelGroup) -> int:
    return (group.atoms - group.floor) // group.step


def _fewer(group: ChannelGroup, steps: int) -> NDArray[np.bool_]:
    """Return the group without its last atoms, as many from every bin."""
    mask = np.ones(group.atoms, dtype=bool)
    leaving = steps * group.step
    if group.atoms - leaving < group.floor:
        return mask
    bins = np.zeros(group.atoms, np.int64) if group.bins is None else np.array(group.bins)
    for number in range(int(bins.max()) + 1):
        mine = np.flatnonzero(bins == number)
        mask[mine[len(mine) - leaving // (int(bins.max()) + 1) :]] = False
    return mask
