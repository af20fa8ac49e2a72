"""First-order Taylor importance: how much the loss would change, to first order, if a channel were set to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.errors import InputError, MissingNeedError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.scoring.contract import ScoringContext
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.block_influence import REMOVAL_NOTE, BlockInfluence
from proxyprune.scoring.tools.calibration import Calibration
from proxyprune.scoring.tools.channel_importance import FloatArray, group_importance
from proxyprune.scoring.tools.gradients import differentiable_parameters, weight_times_gradient
from proxyprune.scoring.tools.scale import half_saturation, significant
from proxyprune.scoring.tools.weights import parameters_by_block


@dataclass(frozen=True)
class TaylorScorer:
    """First-order change of the loss when channels are set to zero, averaged over calibration batches.

    An atom gets, added up over its members, |sum of w * dL/dw over the slice|. In an atom of several channels, such as an attention head,
    every channel has its own absolute value: over thousands of weights the products cancel, and heads would look expendable. A block gets
    the same added up over the rows of all its parameters, brought to [0, 1) by `half_saturation`; which whole blocks leave is decided by
    their influence instead, measured in the same passes. Absolute values are taken for each batch, so batches do not cancel.

    It misleads where the loss is not close to linear in a channel: at a minimum of the batch's loss all gradients vanish, and a channel
    that is vital but saturated looks expendable. Few or unusual batches give a noisy ranking.

    Args:
        unused: What to do when the loss does not depend on a channel group at all: "error", or "zero" to score it 0.

    Source:
        Molchanov et al. 2019, arXiv:1906.10771, the joint contribution (sum of g_m w_m)**2 of a set of parameters. Deviations: the absolute
        value instead of the square; the slices of all coupled members, not only those of the layer that makes the channel; large atoms by
        channel.
    """

    unused: str = "error"
    name: str = field(default="taylor", init=False)
    needs: frozenset[str] = field(default=frozenset({"gradients"}), init=False)

    def __post_init__(self) -> None:
        if self.unused not in ("error", "zero"):
            raise InputError(f"Expected unused to be 'error' or 'zero', found {self.unused!r}.")

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Differentiate the loss of every batch once."""
        calibration = Calibration.of(self, context)
        count = len(calibration.batches)
        contributions = _Contributions(graph, calibration.model)
        influence = BlockInfluence(graph, calibration.model)
        with influence.measured():
            for index in range(count):
                contributions.add(weight_times_gradient(calibration, index))
        if self.unused == "error":
            contributions.refuse_unreached()
        mode = "training" if calibration.model.training else "evaluation"
        return Ranking(
            scores=half_saturation({block: total / count for block, total in contributions.blocks.items()}),
            scorer=self.name,
            channel_scores={
                group: tuple(significant(value) for value in (total / count).tolist()) for group, total in contributions.atoms.items()
            },
            comparable_channels=True,
            removal_scores=influence.scores,
            seed=context.seed,
            notes=(f"First-order Taylor over {count} calibration batches, model in {mode} mode.", REMOVAL_NOTE),
        )


class _Contributions:
    """Sums over batches of the absolute first-order changes."""

    def __init__(self, graph: ModelGraph, model: nn.Module) -> None:
        self._groups = graph.prunable
        self._names = dict(differentiable_parameters(model))
        self._inside = parameters_by_block((block.id for block in graph.blocks), self._names)
        self._reached: set[str] = set()
        self.blocks = dict.fromkeys(self._inside, 0.0)
        self.atoms: dict[str, FloatArray] = {group.id: np.zeros(group.atoms) for group in self._groups}

    def add(self, products: Mapping[str, Tensor]) -> None:
        """Add the weight * gradient products of one batch."""
        self._reached |= products.keys()
        for group, values in group_importance(products, self._groups, "channels").items():
            self.atoms[group] += values
        rows = _row_sums(products)
        for block, names in self._inside.items():
            self.blocks[block] += sum(rows[name] for name in names if name in rows)

    def refuse_unreached(self) -> None:
        """Raise when there are groups that the loss depends on in no batch: to prune them away in silence would be a trap."""
        names = [[member.parameter for member in group.members if member.parameter in self._names] for group in self._groups]
        unreached = [found[0] for found in names if found and self._reached.isdisjoint(found)]
        if unreached:
            listed = ", ".join(f"'{name}'" for name in unreached[:5])
            raise MissingNeedError(
                f"Scorer 'taylor' got no gradient for {len(unreached)} of {len(self._groups)} channel groups, such as {listed}: the loss "
                'does not depend on them. Let loss_fn use every output, or pass options={"unused": "zero"} to remove them first.'
            )


def _row_sums(products: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum over the rows (slices along dimension 0) of |sum over the row|, by parameter name; one copy from the device."""
    if not products:
        return {}
    rows = [(p.reshape(p.shape[0], -1).sum(dim=1) if p.ndim else p).abs().sum().double() for p in products.values()]
    return dict(zip(products, torch.stack([row.cpu() for row in rows]).tolist(), strict=True))
