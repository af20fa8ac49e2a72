"""The importance criteria of torch-pruning, computed by its own code on our channel groups."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.builtin.torch_pruning_groups import atom_values, group_of
from proxyprune.scoring.contract import ScoringContext, model_given
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.calibration import Calibration, untouched
from proxyprune.scoring.tools.gradients import loss_gradients
from proxyprune.scoring.tools.scale import half_saturation, significant
from proxyprune.tracing.module_state import unchanged

_READS: Mapping[str, frozenset[str]] = {
    "weights": frozenset({"weights"}),
    "activations": frozenset({"loss"}),
    "gradients": frozenset({"gradients"}),
    "squared gradients": frozenset({"gradients"}),
}
"""The data that a criterion reads besides the groups, and the needs that follow from it."""


@dataclass(frozen=True)
class TorchPruningScorer:
    """A criterion of torch-pruning on our channel groups.

    Every group becomes a `torch_pruning.dependency.Group` that holds the same layers and indices, and the criterion's own code scores it.
    Layers that torch-pruning has no pruning function for count nothing. An atom of several channels, such as a head, gets their mean.
    A group that the criterion cannot score (`tp_bn_scale` without a batch norm) has no channel scores.

    A block gets the mean of its channels before torch-pruning's normalisation, brought to [0, 1) by `half_saturation`. Channel scores are
    called comparable across groups, as torch-pruning's global pruner takes them; by default it divides them by the mean of their group.

    Args:
        name: Registered name.
        criterion: Name of a class in `torch_pruning.importance`.
        reads: "weights", "activations", "gradients" (of the mean loss over all batches) or "squared gradients" (their mean over batches).
        options: Arguments of the class, such as {"p": 1, "normalizer": None}.

    Raises:
        InputError: If the class does not take these options.
    """

    name: str
    criterion: str
    reads: str = "weights"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reads not in _READS:
            raise InputError(f"Expected reads to be one of {', '.join(_READS)}; found {self.reads!r}.")
        if self.options:
            self._made()

    @property
    def needs(self) -> frozenset[str]:
        """Follows from `reads`."""
        return _READS[self.reads]

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Hand every group to the criterion, after gradients or activations where it reads them."""
        model = model_given(self, context)
        importance = self._made()
        with unchanged(model), untouched(model, context.seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning warns of every layer that it skips
            self._prepare(model, context, importance)
            scored = _scores(importance, graph, model)
            raw = _scores(_without_normalizer(importance), graph, model) if hasattr(importance, "normalizer") else scored
        return Ranking(
            scores=half_saturation({block.id: _mean_of([raw[group] for group in block.groups if group in raw]) for block in graph.blocks}),
            scorer=self.name,
            channel_scores={group: tuple(significant(value) for value in values.tolist()) for group, values in scored.items()},
            comparable_channels=True,
            seed=context.seed,
            notes=_notes(self.criterion, graph, scored),
        )

    def _made(self) -> Any:
        from torch_pruning import importance

        kind = getattr(importance, self.criterion)
        try:
            return kind(**self.options)
        except (TypeError, AssertionError) as error:
            accepted = ", ".join(inspect.signature(kind).parameters) or "none"
            raise InputError(
                f"torch-pruning's {self.criterion} cannot be made with the options {dict(self.options)!r}: {error}. It takes: {accepted}."
            ) from error

    def _prepare(self, model: nn.Module, context: ScoringContext, importance: Any) -> None:
        """Leave gradients or activations on the model, where torch-pruning reads them."""
        if self.reads == "weights":
            return
        calibration = Calibration.of(self, context)
        if self.reads == "activations":
            _record_activations(calibration, importance)
        else:
            _record_gradients(calibration, squared=self.reads == "squared gradients")


def tp_magnitude(**options: Any) -> TorchPruningScorer:
    """torch-pruning's GroupMagnitudeImportance: norm of the weights of all coupled layers."""
    return TorchPruningScorer("tp_magnitude", "GroupMagnitudeImportance", options=options)


def tp_lamp(**options: Any) -> TorchPruningScorer:
    """torch-pruning's LAMPImportance: squared weights over the sum of all that are not smaller."""
    return TorchPruningScorer("tp_lamp", "LAMPImportance", options=options)


def tp_fpgm(**options: Any) -> TorchPruningScorer:
    """torch-pruning's FPGMImportance: distance of a filter to all other filters of its layer."""
    return TorchPruningScorer("tp_fpgm", "FPGMImportance", options=options)


def tp_bn_scale(**options: Any) -> TorchPruningScorer:
    """torch-pruning's BNScaleImportance: scale of the batch norms that follow a channel."""
    return TorchPruningScorer("tp_bn_scale", "BNScaleImportance", options=options)


def tp_random(**options: Any) -> TorchPruningScorer:
    """torch-pruning's RandomImportance: uniform random numbers."""
    return TorchPruningScorer("tp_random", "RandomImportance", options=options)


def tp_taylor(**options: Any) -> TorchPruningScorer:
    """torch-pruning's GroupTaylorImportance: |weight * gradient| of the mean loss over all batches."""
    return TorchPruningScorer("tp_taylor", "GroupTaylorImportance", "gradients", options)


def tp_hessian(**options: Any) -> TorchPruningScorer:
    """torch-pruning's GroupHessianImportance: squared weights times the mean squared gradient over batches."""
    return TorchPruningScorer("tp_hessian", "GroupHessianImportance", "squared gradients", options)


def tp_activation(**options: Any) -> TorchPruningScorer:
    """torch-pruning's ActivationImportance: mean absolute input of the layers that read a channel."""
    return TorchPruningScorer("tp_activation", "ActivationImportance", "activations", options)


def _scores(importance: Any, graph: ModelGraph, model: nn.Module) -> dict[str, Tensor]:
    """Return the importance of each atom, by group; groups that the criterion cannot score are left out."""
    found = {}
    for group in graph.prunable:
        counterpart = group_of(group, model)
        values = importance(counterpart.group) if counterpart is not None else None
        if counterpart is not None and values is not None:
            found[group.id] = atom_values(values, group, counterpart.channels)
    return found


def _without_normalizer(importance: Any) -> Any:
    raw = copy.copy(importance)
    raw.normalizer = None
    return raw


def _mean_of(values: list[Tensor]) -> float | None:
    return significant(float(torch.cat(values).mean())) if values else None


def _record_gradients(calibration: Calibration, *, squared: bool) -> None:
    """Write the mean gradient over batches, or the mean of its square, into `.grad`; zeros where the loss does not depend."""
    count = len(calibration.batches)
    totals: dict[nn.Parameter, Tensor] = {p: torch.zeros_like(p) for p in calibration.model.parameters() if p.is_floating_point()}
    for index in range(count):
        for parameter, gradient in loss_gradients(calibration, index).items():
            totals[parameter] += gradient.square() if squared else gradient
    for parameter, total in totals.items():
        parameter.grad = total / count


def _record_activations(calibration: Calibration, importance: Any) -> None:
    """Write the mean over batches of torch-pruning's activation statistic where it reads it."""
    totals: dict[nn.Module, Tensor] = {}
    with importance.compute_importance(calibration.model), torch.no_grad():
        for index in range(len(calibration.batches)):
            with calibration.untouched(index):
                calibration.finite(calibration.loss(index), index)
            for module in calibration.model.modules():
                if isinstance(value := module.__dict__.pop("_importance", None), Tensor):
                    totals[module] = totals[module] + value if module in totals else value
    for module, total in totals.items():
        module.__dict__["_importance"] = total / len(calibration.batches)


def _notes(criterion: str, graph: ModelGraph, scored: Mapping[str, Tensor]) -> tuple[str, ...]:
    notes = [f"torch-pruning's {criterion} on {len(scored)} of {len(graph.prunable)} channel groups."]
    if missing := [group.id for group in graph.prunable if group.id not in scored]:
        shown = ", ".join(f"'{name}'" for name in missing[:3])
        notes.append(f"It scores no layer of {len(missing)} groups, such as {shown}; their channels are ordered by magnitude.")
    return tuple(notes)
