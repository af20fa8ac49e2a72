"""Prune the base to several sizes, train each for a short time, and record its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from proxyprune.diffusion.process.intervals import Interval
from proxyprune.diffusion.process.objective import Losses, NoisyBatch, Objective, interval_loss
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.judging import judge, scoring_macs, training_batches
from proxyprune.diffusion.stages.recovery import TriedSize
from proxyprune.diffusion.training.averaged_weights import AveragedWeights
from proxyprune.diffusion.training.ledger import Entry, training_macs
from proxyprune.diffusion.training.loop import learning_rate, new_optimizer
from proxyprune.errors import TargetError, TrainingError
from proxyprune.support.seeds import derived_seed

_TRIAL_WARMUP = 0.3  # of a trial; in a third of that, the first steps throw a network off by more than a cut does


_TRIAL_EMA = 0.999  # at most: a short trial's average forgets faster (`AveragedWeights`)


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
    judged = training_batches(setup, process, interval.first, interval.last, settings.trial_images)
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
