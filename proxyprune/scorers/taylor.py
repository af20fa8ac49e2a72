"""First-order Taylor importance: how much the loss would change, to first order, if a channel were set to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.errors import InputError, MissingNeedError, ScoringError
from proxyprune.graph import Block, ChannelGroup, ModelGraph
from proxyprune.ranking import Ranking
from proxyprune.scorers.base import ScoringContext
from proxyprune.scorers.calibration import batch_loss, batch_seed, finite_loss, untouched
from proxyprune.scorers.channels import FloatArray, group_importance
from proxyprune.scorers.scale import half_saturation, significant
from proxyprune.scorers.weights import all_finite


@dataclass(frozen=True)
class TaylorScorer:
    """First-order change of the loss when channels are set to zero, averaged over calibration batches.

    For an atom: sum over its members of |sum over the slice of w * dL/dw|, absolute before the mean over batches, so that batches do
    not cancel. For a block: the sum over the atoms of its own groups, that is, an estimate of what the whole block contributes, divided by
    itself plus the median block (see `half_saturation`).

    It misleads where the loss is far from linear in a channel: at a minimum of the loss over one batch all gradients vanish, and a channel that
    is vital but saturated looks expendable. Few or unusual batches give a noisy ranking.

    Args:
        unused: What to do when the loss does not depend on a channel group at all: "error", or "zero" to score it 0.

    Source:
        Molchanov et al. 2019, arXiv:1906.10771, the group contribution |sum g_m w_m| of a set of parameters. Deviations: absolute value for
        the square (the same order inside one member); slices of all coupled members, not only the producing layer.
    """

    unused: str = "error"
    name: str = "taylor"
    needs: frozenset[str] = field(default=frozenset({"gradients"}), init=False)

    def __post_init__(self) -> None:
        if self.unused not in ("error", "zero"):
            raise InputError(f"Expected unused to be 'error' or 'zero', found {self.unused!r}.")

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Differentiate the loss of every batch once."""
        model, count = context.model, len(context.batches or ())
        if model is None or count == 0:
            raise MissingNeedError("Scorer 'taylor' needs gradients: pass model, batches and loss_fn.")
        totals: dict[str, FloatArray] = {group.id: np.zeros(group.atoms) for group in graph.prunable}
        reached: set[str] = set()
        for index in range(count):
            products = _weight_times_gradient(model, context, index, graph.prunable)
            reached |= products.keys()
            for group, values in group_importance(products, graph.prunable, "net").items():
                totals[group] += values / count
        if self.unused == "error":
            _refuse_unreached(graph.prunable, reached)
        block_totals = {block.id: _block_total(block, totals) for block in graph.blocks}
        return Ranking(
            scores=half_saturation(block_totals),
            scorer=self.name,
            channel_scores={group: tuple(significant(value) for value in values.tolist()) for group, values in totals.items()},
            seed=context.seed,
            notes=(f"First-order Taylor over {count} calibration batches, model in {'training' if model.training else 'evaluation'} mode.",),
        )
