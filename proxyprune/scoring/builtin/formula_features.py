"""Values of the features of formulas on a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.builtin.obs import ObsScorer
from proxyprune.scoring.builtin.taylor import TaylorScorer
from proxyprune.scoring.contract import Scorer, ScoringContext, model_given
from proxyprune.scoring.formula.operators import FloatArray
from proxyprune.scoring.tools.calibration import Calibration
from proxyprune.scoring.tools.channel_importance import group_importance
from proxyprune.scoring.tools.channel_moments import channel_moments, root_mean_squares
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
            context: The network itself, batches and a loss, as far as they are needed.
        """
        groups = tuple(group.id for group in graph.prunable)
        ends = np.cumsum([0, *(group.atoms for group in graph.prunable)]).tolist()
        sections = tuple(slice(start, end) for start, end in itertools.pairwise(ends))
        found = {name: _COMPUTED[name](scorer, graph, context) for name in names}
        joined = {name: np.concatenate([values[group] for group in groups]) if groups else np.zeros(0) for name, values in found.items()}
        return cls(groups, sections, joined)

    def by_group(self, values: FloatArray) -> dict[str, FloatArray]:
        """Split values of all atoms."""
        return {group: values[section] for group, section in zip(self.groups, self.sections, strict=True)}


def _weights(statistic: str) -> Callable[[Scorer, ModelGraph, ScoringContext], ByGroup]:
    return lambda scorer, graph, context: group_importance(parameters_of(model_given(scorer, context)), graph.prunable, statistic)


def _gradient(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> ByGroup:
    calibration = Calibration.of(scorer, context)
    count, total = len(calibration.batches), {group.id: np.zeros(group.atoms) for group in graph.prunable}
    for index in range(count):
        gradients = loss_gradients(calibration, index)
        by_name = {name: gradients[parameter] for name, parameter in differentiable_parameters(calibration.model) if parameter in gradients}
        for group, values in group_importance(by_name, graph.prunable, "l2").items():
            total[group] += values / count
    return total


def _of_scorer(made: Callable[[], Scorer]) -> Callable[[Scorer, ModelGraph, ScoringContext], ByGroup]:
    def scores(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> ByGroup:
        found = made().score(graph, context).channel_scores
        return {group.id: np.asarray(found.get(group.id, [0.0] * group.atoms), dtype=np.float64) for group in graph.prunable}

    return scores


def _root_mean_square(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> ByGroup:
    model = model_given(scorer, context)
    return root_mean_squares(channel_moments(graph, model, ForwardPasses(scorer.name, model, context).all))


def _variance(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> ByGroup:
    model = model_given(scorer, context)
    moments = channel_moments(graph, model, ForwardPasses(scorer.name, model, context).all)
    return {group: found.variance for group, found in moments.items()}


def _macs(scorer: Scorer, graph: ModelGraph, context: ScoringContext) -> ByGroup:
    full, found = graph.cost.full, {}
    for index, group in enumerate(graph.prunable):
        atoms = full.copy()
        atoms[index] -= 1
        found[group.id] = np.full(group.atoms, (graph.macs - graph.cost.macs(atoms)) / max(graph.macs, 1))
    return found


_COMPUTED: Mapping[str, Callable[[Scorer, ModelGraph, ScoringContext], ByGroup]] = {
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
