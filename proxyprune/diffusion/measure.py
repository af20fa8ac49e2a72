"""What is measured on the base: loss and gradient by noise level, loss of a network in an interval, damage of pruning to a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.diffusion.broadcast import SharedScorer, told
from proxyprune.diffusion.draws import fixed_batches
from proxyprune.diffusion.ema import AveragedWeights
from proxyprune.diffusion.intervals import Interval, Intervals, bins_of, measured
from proxyprune.diffusion.ledger import Entry, training_macs
from proxyprune.diffusion.loop import learning_rate, new_optimizer
from proxyprune.diffusion.objective import Losses, NoisyBatch, Objective, Process
from proxyprune.diffusion.recovery import TriedSize
from proxyprune.diffusion.schedule import FloatArray
from proxyprune.diffusion.setup import Setup
from proxyprune.errors import MissingNeedError, ProxyPruneError, TargetError, TrainingError
from proxyprune.flow import PruneResult
from proxyprune.flow import cut as prune_judged
from proxyprune.graph import ModelGraph
from proxyprune.ranking import Ranking
from proxyprune.read import trace
from proxyprune.scoring import Brief, find, score
from proxyprune.scoring.seeds import derived_seed

_TRIAL_WARMUP = 0.3  # of a trial; in a third of that, the first steps throw a network off by more than a cut does
_TRIAL_EMA = 0.999  # at most: a short trial's average forgets faster (`AveragedWeights`)
_WEIGHT_BINS = 8  # of every interval
_PROJECTED = 2048  # dimensions that gradients are projected to; their angles are kept within a few hundredths


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
        """The loss of one batch."""
        self.images += len(batch)
        return self.objective(model, batch)


def interval_loss(model: nn.Module, objective: Objective, batches: Sequence[NoisyBatch]) -> float:
    """Mean loss over fixed batches, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return math.fsum(float(objective(model, batch)) * len(batch) for batch in batches) / sum(map(len, batches))


@dataclass(frozen=True)
class Judged:
    """A network with its importances on the timesteps of an interval: enough to cut it to any size.

    Attributes:
        graph: Its trace.
        ranking: Its blocks and channels, judged on the interval.
        entry: What judging cost.
    """

    graph: ModelGraph
    ranking: Ranking
    entry: Entry

    def cut(self, setup: Setup, model: nn.Module, macs: int) -> PruneResult:
        """Prune the judged network, or one with the same weights, to a number of MACs."""
        settings = setup.config.pruning
        options: dict[str, Any] = {"mode": settings.mode, "round_to": settings.round_to, "accept_unreliable": settings.accept_unreliable}
        return prune_judged(model, setup.placed_inputs(), self.graph, self.ranking, macs, keep=settings.keep, **options)


def judge(setup: Setup, model: nn.Module, interval: Interval, macs: int, stage: str, base_losses: Losses = ()) -> Judged:
    """Rank a network's blocks and channels on the timesteps of an interval.

    Args:
        setup: The run.
        model: The network.
        interval: Whose timesteps the calibration batches are drawn from.
        macs: The size in mind, for scorers that are told the goal.
        stage: For the ledger.
        base_losses: Of the base, where experts are weighed against it.
    """
    settings = setup.config.pruning
    process = setup.process(setup.config.experts, interval.first, interval.last, base_losses)
    images = settings.calibration_batches * settings.calibration_images
    batches = _training_batches(setup, process, interval.first, interval.last, images, settings.calibration_images)
    loss = CountedLoss(Objective(setup.calling))
    scorer = SharedScorer(find(settings.scorer, dict(settings.options)), setup.accelerator)
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
        brief=Brief(macs, mode=settings.mode, interval=interval.brief(setup.schedule.snr_db)),
    )
    shown = int(told(setup.accelerator, loss.images))
    spent = training_macs(graph.macs, shown) if "gradients" in scorer.needs else graph.macs * shown
    return Judged(graph, ranking, Entry(stage, interval.index, "scoring", shown, spent))


def rehearse_judging(setup: Setup) -> float:
    """Have the untrained network judged by two images: what a scorer misses, it shall say before a base is trained.

    What else goes wrong may come from the weights, which training changes, and counts when the scorer is asked in earnest. One that asks
    another machine is not asked twice.

    Returns:
        How often the scorer looks at each image.

    Raises:
        MissingNeedError: If the scorer cannot judge this network.
    """
    settings, last = setup.config.pruning, len(setup.schedule.times) - 1
    scorer = find(settings.scorer, dict(settings.options))
    if "network" in scorer.needs:
        return 0.0
    batches = _training_batches(setup, Process(setup.schedule), 0, last, images=2, batch_size=2)
    loss = CountedLoss(Objective(setup.calling))
    given: dict[str, Any] = {"example_inputs": setup.placed_inputs(), "brief": Brief(setup.base_macs, mode=settings.mode)}
    with torch.random.fork_rng():
        try:
            score(setup.graph, scorer, model=setup.base_model(), batches=batches, loss_fn=loss, **given)
        except MissingNeedError as error:
            raise MissingNeedError(f"{error} Here options are settings: --set pruning.options.NAME=VALUE.") from error
        except ProxyPruneError:
            return 1.0
    return loss.images / 2


def _training_batches(setup: Setup, process: Process, first: int, last: int, images: int, batch_size: int = 128) -> Sequence[NoisyBatch]:
    """Training images with noise, from timesteps first ... last; the same ones whenever they are asked for."""
    seed, device = setup.config.seed, setup.device
    return fixed_batches(setup.data, process, first, last, images=images, batch_size=batch_size, seed=seed, held_out=False, device=device)


def affinity(setup: Setup, model: nn.Module) -> tuple[list[int], FloatArray, FloatArray, Entry]:
    """Loss and gradient of the base in bins of timesteps.

    Returns:
        Edges of the bins, gradients [bins, D] (randomly projected), losses [bins], and what that cost.
    """
    settings = setup.config.intervals
    total = len(setup.schedule.times)
    bins = min(settings.bins, total)
    edges = [round(total * k / bins) for k in range(bins + 1)]
    objective, process = Objective(setup.calling), Process(setup.schedule)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients, losses = [], []
    model.eval()
    for first, stop in itertools.pairwise(edges):
        (batch,) = _training_batches(setup, process, first, stop - 1, settings.images, settings.images)
        loss = objective(model, batch)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients.append(_projected([gradient for gradient in found if gradient is not None], setup.config.seed))
        losses.append(float(loss.detach()))
    images = bins * settings.images
    entry = Entry("intervals", None, "measuring", images, training_macs(setup.base_macs, images))
    return edges, np.stack(gradients), np.asarray(losses), entry


def _projected(gradients: Sequence[Tensor], seed: int) -> FloatArray:
    """A gradient in fewer dimensions: signed sums over buckets, the same for every bin (count sketch)."""
    flat = torch.cat([gradient.detach().reshape(-1).cpu().double() for gradient in gradients])
    generator = torch.Generator().manual_seed(seed)
    bucket = torch.randint(0, _PROJECTED, (len(flat),), generator=generator)
    sign = torch.randint(0, 2, (len(flat),), generator=generator).double() * 2.0 - 1.0
    return np.asarray(torch.zeros(_PROJECTED, dtype=torch.float64).index_add_(0, bucket, flat * sign).numpy())


def measured_intervals(setup: Setup, model: nn.Module) -> tuple[Intervals, Entry]:
    """Intervals from the base's own loss and gradients."""
    edges, gradients, losses, entry = affinity(setup, model)
    settings = setup.config.intervals
    return measured(setup.schedule, settings.count, edges, gradients, losses, settings.loss_weight), entry


def losses_of_base(setup: Setup, model: nn.Module, members: Sequence[Interval]) -> tuple[Losses, Entry]:
    """Loss of the base by timestep, on training images: what experts are weighed against.

    Returns:
        (timestep, loss) in the middle of some bins of every interval, and what that cost.
    """
    objective, process, found = Objective(setup.calling), Process(setup.schedule), []
    bins = bins_of(members, _WEIGHT_BINS * len(members))
    each = max(1, setup.config.budgets.trial_images // _WEIGHT_BINS)
    for _, first, last in bins:
        batches = _training_batches(setup, process, first, last, each)
        found.append(((first + last) / 2, interval_loss(model, objective, batches)))
    images = len(bins) * each
    return found, Entry("weights", None, "measuring", images, setup.base_macs * images)


@dataclass(frozen=True)
class Trial:
    """What pruning to each size costs in one interval.

    Attributes:
        sizes: Those that could be reached, with their damage.
        whole_loss: Of the whole network at the end of its trial, on fixed training images and noise.
        entries: What trying cost.
        notes: Sizes that could not be reached.
    """

    sizes: tuple[TriedSize, ...]
    whole_loss: float
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def try_sizes(setup: Setup, weights: dict[str, Tensor], interval: Interval, base_losses: Losses = ()) -> Trial:
    """Prune to each size, train for a while, look at the loss on the way; the whole network is trained, too.

    Every size gets the same compute, as experts do: a smaller network recovers in more steps (`compute.saved_to_recovery`).
    Held-out images stay out of it: they judge the run afterwards.

    Raises:
        TrainingError: If a loss is not finite and positive.
    """
    settings = setup.config.budgets
    process = setup.process(setup.config.experts, interval.first, interval.last, base_losses)
    judged = _training_batches(setup, process, interval.first, interval.last, settings.trial_images)
    smallest = int(min(settings.sizes, default=1.0) * setup.base_macs)
    judged_base = judge(setup, setup.base_model(weights).eval(), interval, smallest, "budgets", base_losses)
    entries, notes, sizes = [judged_base.entry], [], []
    whole: list[float] = []
    for fraction in (1.0, *sorted(settings.sizes, reverse=True)):
        model, macs = setup.base_model(weights), setup.base_macs
        if fraction < 1.0:
            try:
                result = judged_base.cut(setup, model, int(fraction * macs))
            except TargetError as error:
                notes.append(f"Interval {interval.index}: size {fraction} cannot be reached ({error})")
                continue
            model, macs = result.model, result.plan.macs
        more = setup.base_macs / macs if setup.config.compute.saved_to_recovery else 1.0
        lengths = [round(length * more) for length in setup.config.trial_lengths]
        losses = _losses_on_the_way(setup, model, interval, lengths, base_losses, judged)
        images, looks = lengths[-1] * setup.config.run.batch_size, len(lengths) * settings.trial_images
        entries.append(Entry("budgets", interval.index, "training", images, training_macs(macs, images)))
        entries.append(Entry("budgets", interval.index, "measuring", looks, macs * looks))
        if not all(math.isfinite(loss) and loss > 0.0 for loss in losses):
            seen, advice = ", ".join(f"{loss:.4g}" for loss in losses), ", or leave the size out (budgets.sizes)" if fraction < 1.0 else ""
            raise TrainingError(
                f"Size {fraction} was tried in interval {interval.index}, and after {lengths} steps its loss was {seen}, of which no "
                f"damage can be told. Lower experts.learning_rate{advice}."
            )
        if fraction < 1.0:
            sizes.append(TriedSize(fraction, tuple(math.log(loss / like) for loss, like in zip(losses, whole, strict=True))))
        else:
            whole = losses
    return Trial(tuple(sizes), whole[-1], tuple(entries), tuple(notes))


def scoring_macs(setup: Setup, looks: float = 1.0) -> int:
    """What judging channels once costs, of the whole network.

    Args:
        setup: The run.
        looks: How often the scorer looks at each image; nothing for one that looks at none.
    """
    settings = setup.config.pruning
    images = round(settings.calibration_batches * settings.calibration_images * looks)
    needs = find(settings.scorer, dict(settings.options)).needs
    if "gradients" in needs:
        return training_macs(setup.base_macs, images)
    return setup.base_macs * images if "loss" in needs else 0


def trial_macs(setup: Setup, looks: float = 1.0) -> int:
    """The most that measured budgets may cost, all intervals together; looks as for `scoring_macs`."""
    settings = setup.config.budgets
    lengths = setup.config.trial_lengths
    images = (lengths[-1] + 1) * setup.config.run.batch_size  # a smaller network's steps are rounded, by less than one
    each = training_macs(setup.base_macs, images) + setup.base_macs * len(lengths) * settings.trial_images
    return setup.config.intervals.count * (scoring_macs(setup, looks) + (1 + len(settings.sizes)) * each)


def _losses_on_the_way(
    setup: Setup, model: nn.Module, interval: Interval, lengths: Sequence[int], base_losses: Losses, judged: Sequence[NoisyBatch]
) -> list[float]:
    """Train with the experts' optimizer and losses and look at the loss after each of some numbers of steps; every process does the same.

    The learning rate rises and stays up, without decay, and looks are at averaged weights, so that one trial tells of several lengths.
    """
    stage = replace(setup.config.experts, decay="constant", warmup=_TRIAL_WARMUP)
    draws = setup.draws(f"trial-{interval.index}", stage, interval.first, interval.last, base_losses)
    draws.rank, draws.world = 0, 1
    objective, optimizer, averaged = Objective(setup.calling), new_optimizer(model, stage), AveragedWeights(model, _TRIAL_EMA)
    losses: list[float] = []
    for step in range(lengths[-1]):
        model.train()
        torch.manual_seed(derived_seed(setup.config.seed, f"trial-{interval.index}", "dropout", step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, step / lengths[-1])
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = objective(model, draws.batch(step, setup.device))
        torch.autograd.backward(loss)
        if stage.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), stage.clip)
        optimizer.step()
        averaged.update(model)
        if step + 1 in lengths:
            with averaged.swapped_in(model):
                losses.append(interval_loss(model, objective, judged))
    return losses
