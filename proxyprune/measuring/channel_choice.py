"""The weight of block scores on the channel scores of another scorer, chosen by measuring; the channel scorer alone is a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from proxyprune.errors import MissingNeedError, VerificationError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import Data, held_out_loss
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.scoring.contract import LossFunction
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.channel_prior import with_block_prior

STRENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Weights of the block scores that are measured, besides 0: the channel scorer alone."""


@dataclass(frozen=True)
class PriorTrial:
    """One weight of the block scores, measured.

    Attributes:
        strength: Weight; 0 is the channel scorer alone.
        losses: Mean loss of each network that `build` gives, on the held-out half of the calibration batches; infinite if not finite.
        ranking: What was planned with.
        plan: What was planned; trials with equal plans are measured once.
    """

    strength: float
    losses: tuple[float, ...]
    ranking: Ranking = field(repr=False)
    plan: PrunePlan = field(repr=False)


@dataclass(frozen=True)
class PriorChoice:
    """A task of choosing a weight.

    Attributes:
        graph: The traced network.
        model: The traced network itself.
        request: What is asked of the plan.
        batches: Calibration batches; those of odd index judge.
        loss_fn: Loss of a network on a batch.
        seed: All randomness follows from it.
        build: Ranking -> the network after the cut and after what follows, one after the other; a network may be changed into the next.
    """

    graph: ModelGraph
    model: nn.Module = field(repr=False)
    request: PlanRequest
    batches: Sequence[Any] = field(repr=False)
    loss_fn: LossFunction = field(repr=False)
    seed: int
    build: Callable[[Ranking], Iterable[nn.Module]] = field(repr=False)

    def choose(self, blocks: Ranking, channels: Ranking) -> Ranking:
        """Return the ranking with the lowest last loss, among those with no loss above that of weight 0; of equals, the least weight.

        Args:
            blocks: The ranking that has block scores.
            channels: The ranking that has channel scores. With weight 0 it is planned with as it is.
        """
        trials = self.trials(blocks, channels)
        eligible = [trial for trial in trials if no_worse(trial.losses, trials[0].losses)]
        best = min(eligible, key=lambda trial: (trial.losses[-1], trial.strength))
        name = f"{blocks.scorer} on {channels.scorer}"
        notes = (*blocks.notes, *channels.notes, self._note(blocks, channels, trials, best))
        return replace(best.ranking, scorer=name, confidence=blocks.confidence, unreliable=blocks.unreliable, notes=notes)

    def trials(self, blocks: Ranking, channels: Ranking) -> tuple[PriorTrial, ...]:
        """Measure every weight, from 0 up."""
        found: list[PriorTrial] = []
        data = Data((), self.batches[1::2], self.loss_fn)
        for strength in (0.0, *STRENGTHS):
            ranking = channels
            if strength:
                weighted = with_block_prior(self.graph, channels, blocks.scores, strength)
                ranking = replace(weighted, removal_scores=blocks.removal_scores)
            plan = plan_for(self.graph, ranking, self.request, model=self.model)
            same = next((trial for trial in found if trial.plan.same_network(plan)), None)
            losses = same.losses if same is not None else self._losses(ranking, data, needed=not strength)
            found.append(PriorTrial(strength, losses, ranking, plan))
        return tuple(found)

    def _losses(self, ranking: Ranking, data: Data, *, needed: bool) -> tuple[float, ...]:
        """Losses of a ranking's networks; infinite for a prior whose network does not run, unless it is needed."""
        try:
            return tuple(held_out_loss(model, data, self.seed) for model in self.build(ranking))
        except VerificationError:
            if needed:
                raise
            return (math.inf,)

    def _note(self, blocks: Ranking, channels: Ranking, trials: Sequence[PriorTrial], best: PriorTrial) -> str:
        tried = ", ".join(f"{trial.strength:g}: {shown_losses(trial.losses)}" for trial in trials)
        judged = len(self.batches[1::2])
        return (
            f"Channels are scored by '{channels.scorer}', and the block scores of '{blocks.scorer}' have the weight {best.strength:g}, "
            f"chosen by the loss on {judged} held-out calibration batch{'es' if judged > 1 else ''} ({tried})."
        )


def no_worse(losses: Sequence[float], than: Sequence[float]) -> bool:
    """Return True if no loss is above its counterpart; a network that could not be built has one infinite loss and fails."""
    return all(loss <= other for loss, other in zip(losses, than, strict=False)) and (len(losses) == len(than) or math.isinf(than[0]))


def shown_losses(losses: Sequence[float]) -> str:
    """Return losses for a note: after the cut, and after the compensation."""
    return " then ".join(f"{loss:.5g}" for loss in losses)


def check_choosable(purpose: str, batches: Sequence[Any] | None, loss_fn: LossFunction | None) -> None:
    """Make sure that there is enough data to choose by measuring.

    Args:
        purpose: What is measured, for the message.
        batches: Calibration batches, or None.
        loss_fn: Loss of a network on a batch, or None.

    Raises:
        MissingNeedError: If there are fewer than two batches, or no loss.
    """
    if choosable(batches, loss_fn):
        return
    found = "no loss" if loss_fn is None else f"{len(batches or ())} calibration batches"
    raise MissingNeedError(
        f"{purpose}, which needs at least two calibration batches and a loss; found {found}. Pass batches=[...] and loss_fn; in a model "
        "file, define calibration_batches() and loss(model, batch)."
    )


def choosable(batches: Sequence[Any] | None, loss_fn: LossFunction | None) -> bool:
    """Return True if there is enough data to choose a weight."""
    return loss_fn is not None and batches is not None and len(batches) > 1


def resting_note(blocks: Ranking, *, weights: bool) -> str:
    """Return the note of a plan made from block scores alone.

    Args:
        blocks: The ranking.
        weights: Whether planning reads weights.
    """
    within = "the magnitude of weights" if weights else "nothing: the first channels stay"
    return (
        f"This plan rests on the block scores of '{blocks.scorer}', and inside each channel group on {within}; nothing was measured. With "
        "calibration batches and a loss, channels='taylor' (--channels taylor) scores the channels and measures the weight of the blocks."
    )
