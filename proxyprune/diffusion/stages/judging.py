"""Score the channels of the base on its own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.api import compensate, prune_ranked, trace
from proxyprune.diffusion.config.run_config import PruningConfig
from proxyprune.diffusion.process.intervals import Interval
from proxyprune.diffusion.process.objective import Losses, NoisyBatch, Objective, Process
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.timed_cut import cut_to_time, timed
from proxyprune.diffusion.training.across_processes import SharedScorer, from_main_process
from proxyprune.diffusion.training.batches import fixed_batches
from proxyprune.diffusion.training.ledger import Entry, training_macs
from proxyprune.errors import MissingNeedError, ProxyPruneError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.planner import chosen_allocation
from proxyprune.proxy.scorer import LLMScorer
from proxyprune.result import PruneResult
from proxyprune.scoring import Brief, Scorer, find, score
from proxyprune.scoring.ranking import Ranking

_COMPENSATION_PASSES = 12
"""Passes of each image that compensation costs as much as, about: three for each network, and the sums of products."""


@dataclass
class CountedLoss:
    """A loss that counts the images it is shown, for the ledger.

    Attributes:
        objective: The loss.
        images: Shown so far.
    """

    objective: Objective
    images: int = field(default=0, init=False)

    def __call__(self, model: nn.Module, batch: NoisyBatch) -> Tensor:
        """Return the loss of one batch."""
        self.images += len(batch)
        return self.objective(model, batch)


@dataclass(frozen=True)
class Judged:
    """A network with its importances on the timesteps of an interval: enough to cut it to any size.

    Attributes:
        graph: Its trace.
        ranking: Its blocks and channels, judged on the interval.
        entry: What judging cost.
        batches: What it was judged on.
        objective: The loss.
    """

    graph: ModelGraph
    ranking: Ranking
    entry: Entry
    batches: Sequence[NoisyBatch] = field(repr=False)
    objective: Objective = field(repr=False)

    def cut(self, setup: Setup, model: nn.Module, share: float) -> tuple[PruneResult, tuple[Entry, ...]]:
        """Prune the judged network, or one with the same weights, and compensate where that is configured.

        Args:
            setup: The run.
            model: The network.
            share: Of the base's MACs or time that one forward pass may cost.

        Returns:
            The result, and what compensation cost.
        """
        settings = setup.config.pruning
        if setup.config.budgets.metric == "time":
            result = cut_to_time(setup, model, self.graph, self.ranking, share)
        else:
            request = settings.request(int(share * setup.base_macs))
            graph = timed(setup, self.graph, model) if request.needs_times else self.graph
            result = prune_ranked(model, setup.placed_inputs(), graph, self.ranking, request)
        if not settings.compensate:
            return result, ()
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:  # sums of products count as well as passes through the networks
            result = compensate(result, model, self.batches, self.objective, seed=setup.config.seed, inplace=True)
        images = sum(map(len, self.batches))
        return result, (Entry(self.entry.stage, self.entry.interval, "compensation", images, counter.get_total_flops() // 2),)


def judge(setup: Setup, model: nn.Module, interval: Interval, macs: int, stage: str, base_losses: Losses = ()) -> Judged:
    """Rank a network's blocks and channels on the timesteps of an interval.

    Args:
        setup: The run.
        model: The network.
        interval: Whose timesteps the calibration batches are drawn from.
        macs: The size in mind, for scorers that take the goal into account.
        stage: For the ledger.
        base_losses: Of the base, where experts are weighed against it.
    """
    settings = setup.config.pruning
    process = setup.process(setup.config.experts, interval.first, interval.last, base_losses)
    images = settings.calibration_batches * settings.calibration_images
    batches = training_batches(setup, process, interval.first, interval.last, images, settings.calibration_images)
    loss = CountedLoss(Objective(setup.calling))
    scorer = SharedScorer(_scorer(settings), setup.accelerator)
    inputs = setup.placed_inputs()
    graph = trace(model, inputs, norm_groups=settings.norm_groups, probe=False)
    ranking = score(
        graph,
        scorer,
        model=model,
        batches=batches,
        loss_fn=loss,
        seed=setup.config.seed,
        example_inputs=inputs,
        brief=settings.request(macs).brief(Brief(interval=interval.brief(setup.schedule.snr_db))),
    )
    shown = int(from_main_process(setup.accelerator, loss.images))
    spent = training_macs(graph.macs, shown) if "gradients" in scorer.needs else graph.macs * shown
    return Judged(graph, ranking, Entry(stage, interval.index, "scoring", shown, spent), batches, Objective(setup.calling))


def _scorer(settings: PruningConfig) -> Scorer:
    """Return the scorer. A language model is shown measured figures only if options name them, because the ledger charges by needs."""
    scorer = find(settings.scorer, dict(settings.options))
    return replace(scorer, statistics=()) if isinstance(scorer, LLMScorer) and scorer.statistics is None else scorer


def rehearse_judging(setup: Setup) -> float:
    """Have the untrained network judged by two images: what a scorer misses, it shall say before a base is trained.

    What else goes wrong may come from the weights, which training changes, and counts when the scorer runs on the trained base. One
    that asks another machine is skipped here.

    Returns:
        How often the scorer looks at each image.

    Raises:
        MissingNeedError: If the scorer cannot judge this network.
        InputError: If channels are to be weighed against each other (pruning.allocation) and the scorer has none that compare.
    """
    settings, last = setup.config.pruning, len(setup.schedule.times) - 1
    scorer = _scorer(settings)
    if "network" in scorer.needs:
        return 0.0
    batches = training_batches(setup, Process(setup.schedule), 0, last, images=2, batch_size=2)
    loss = CountedLoss(Objective(setup.calling))
    given: dict[str, Any] = {"example_inputs": setup.placed_inputs(), "brief": settings.request(setup.base_macs).brief()}
    with torch.random.fork_rng():
        try:
            ranking = score(setup.graph, scorer, model=setup.base_model(), batches=batches, loss_fn=loss, **given)
        except MissingNeedError as error:
            raise MissingNeedError(f"{error} Here options are settings: --set pruning.options.NAME=VALUE.") from error
        except ProxyPruneError:
            return 1.0
    chosen_allocation(setup.graph, ranking, settings.allocation)
    return loss.images / 2


def training_batches(setup: Setup, process: Process, first: int, last: int, images: int, batch_size: int = 128) -> Sequence[NoisyBatch]:
    """Training images with noise, from timesteps first ... last; the same ones whenever they are asked for."""
    seed, device = setup.config.seed, setup.device
    return fixed_batches(setup.data, process, first, last, images=images, batch_size=batch_size, seed=seed, held_out=False, device=device)


def compensation_macs(setup: Setup) -> int:
    """Return about what one compensation costs; the ledger has the exact figure afterwards."""
    settings = setup.config.pruning
    return _COMPENSATION_PASSES * setup.base_macs * settings.calibration_batches * settings.calibration_images * settings.compensate


def scoring_macs(setup: Setup, looks: float = 1.0) -> int:
    """Return what judging channels once costs, of the whole network.

    Args:
        setup: The run.
        looks: How often the scorer looks at each image; nothing for one that looks at none.
    """
    settings = setup.config.pruning
    images = round(settings.calibration_batches * settings.calibration_images * looks)
    needs = _scorer(settings).needs
    if "gradients" in needs:
        return training_macs(setup.base_macs, images)
    return setup.base_macs * images if "loss" in needs else 0
