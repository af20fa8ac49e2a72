"""Values of the features of formulas on a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.builtin.obs import ObsScorer
from proxyprune.scoring.builtin.taylor import TaylorScorer
from proxyprune.scoring.contract import Scorer, ScoringContext, model_given
from proxyprune.scoring.formula.operators import FloatArray
from proxyprune.scoring.tools.calibration import Calibration
from proxyprune.scoring.tools.channel_importance import group_importance
from proxyprune.scoring.tools.channel_moments import ChannelMoments, channel_moments, root_mean_squares
from proxyprune.scoring.tools.forward_passes import ForwardPasses
from proxyprune.scoring.tools.gradients import differentiable_parameters, loss_gradients
from proxyprune.scoring.tools.weights import parameters_of

ByGroup = Mapping[str, FloatArray]


@dataclass(frozen=True)
class FeatureTable:
    """Values of features for all atoms, group after group.

    Attributes:
        groups: Ids of the groups.
        sections: Place of each group's atoms.
        values: Feature -> its values, [atoms].
    """

    groups: tuple[str, ...]
    sections: tuple[slice, ...]
    values: Mapping[str, FloatArray] = field(repr=False)

    @classmethod
    def measured(cls, names: Iterable[str], scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> FeatureTable:
        """Compute features on a network.

        Args:
            names: Features.
            scorer: The scorer that uses them; it declares their needs.
            graph: The traced network.
            context: The network itself, and batches and a loss if a feature needs them.
        """
        groups = tuple(group.id for group in graph.prunable)
        ends = np.cumsum([0, *(group.atoms for group in graph.prunable)]).tolist()
        sections = tuple(slice(start, end) for start, end in itertools.pairwise(ends))
        subject = _Subject(scorer, graph, context)
        found = {name: _COMPUTED[name](subject) for name in names}
        joined = {name: np.concatenate([values[group] for group in groups]) if groups else np.zeros(0) for name, values in found.items()}
        return cls(groups, sections, joined)

    def by_group(self, values: FloatArray) -> dict[str, FloatArray]:
        """Split values of all atoms."""
        return {group: values[section] for group, section in zip(self.groups, self.sections, strict=True)}


@dataclass(frozen=True)
class _Subject:
    """A network to measure features on. Forward passes that several features need are made once."""

    scorer: Scorer
    graph: ModelGraph
    context: ScoringContext

    @cached_property
    def moments(self) -> dict[str, ChannelMoments]:
        model = model_given(self.scorer, self.context)
        return channel_moments(self.graph, model, ForwardPasses(self.scorer.name, model, self.context).all)


_Feature = Callable[[_Subject], ByGroup]


def _weights(statistic: str) -> _Feature:
    return lambda on: group_importance(parameters_of(model_given(on.scorer, on.context)), on.graph.prunable, statistic)


def _gradient(on: _Subject) -> ByGroup:
    calibration = Calibration.of(on.scorer, on.context)
    count, total = len(calibration.batches), {group.id: np.zeros(group.atoms) for group in on.graph.prunable}
    for index in range(count):
        gradients = loss_gradients(calibration, index)
        by_name = {name: gradients[parameter] for name, parameter in differentiable_parameters(calibration.model) if parameter in gradients}
        for group, values in group_importance(by_name, on.graph.prunable, "l2").items():
            total[group] += values / count
    return total


def _of_scorer(made: Callable[[], Scorer]) -> _Feature:
    def scores(on: _Subject) -> ByGroup:
        found = made().score(on.graph, on.context).channel_scores
        return {group.id: np.asarray(found.get(group.id, [0.0] * group.atoms), dtype=np.float64) for group in on.graph.prunable}

    return scores


def _root_mean_square(on: _Subject) -> ByGroup:
    return root_mean_squares(on.moments)


def _variance(on: _Subject) -> ByGroup:
    return {group: found.variance for group, found in on.moments.items()}


def _macs(on: _Subject) -> ByGroup:
    graph, found = on.graph, {}
    for index, group in enumerate(graph.prunable):
        atoms = graph.cost.full.copy()
        atoms[index] -= 1
        found[group.id] = np.full(group.atoms, (graph.macs - graph.cost.macs(atoms)) / max(graph.macs, 1))
    return found


_COMPUTED: Mapping[str, _Feature] = {
    "w": _weights("l2"),
    "w1": _weights("l1"),
    "g": _gradient,
    "wg": _of_scorer(TaylorScorer),
    "act": _root_mean_square,
    "var": _variance,
    "obs": _of_scorer(ObsScorer),
    "macs": _macs,
}

NEEDS_OF: Mapping[str, str] = {
    "w": "weights",
    "w1": "weights",
    "g": "gradients",
    "wg": "gradients",
    "act": "batches",
    "var": "batches",
    "obs": "batches",
}
"""Feature -> what a scorer needs for it; `macs` needs the structure only."""
