"""Prune the base to several sizes, train each for a short time, and record its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from proxyprune.diffusion.config.run_config import StageConfig
from proxyprune.diffusion.process.intervals import Interval
from proxyprune.diffusion.process.objective import Losses, NoisyBatch, Objective, interval_loss
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.judging import compensation_macs, judge, scoring_macs, training_batches
from proxyprune.diffusion.stages.recovery import TriedSize
from proxyprune.diffusion.training.averaged_weights import AveragedWeights
from proxyprune.diffusion.training.batches import Draws
from proxyprune.diffusion.training.ledger import Entry, training_macs
from proxyprune.diffusion.training.loop import learning_rate
from proxyprune.diffusion.training.state import Training, new_optimizer
from proxyprune.diffusion.training.step import TrainingStep
from proxyprune.errors import TargetError, TrainingError
from proxyprune.support.seeds import derived_seed

_TRIAL_WARMUP = 0.3  # of a trial; in a third of that, the first steps throw a network off by more than a cut does
_TRIAL_EMA = 0.999  # at most: a short trial's average forgets faster (`AveragedWeights`)


@dataclass(frozen=True)
class Trial:
    """The damage of pruning to each size in one interval.

    Attributes:
        sizes: Those that could be reached, with their damage.
        whole_loss: Of the whole network at the end of its trial, on fixed training images and noise.
        entries: The cost of the trials.
        notes: Sizes that could not be reached.
    """

    sizes: tuple[TriedSize, ...]
    whole_loss: float
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def try_sizes(setup: Setup, weights: dict[str, Tensor], interval: Interval, base_losses: Losses = ()) -> Trial:
    """Prune to each size, train for a while and measure the loss at intermediate steps; the whole network is trained, too.

    Every size gets the same compute, as experts do: a smaller network recovers in more steps (`compute.saved_to_recovery`).
    Held-out images are not used: they judge the run afterwards.

    Raises:
        TrainingError: If a loss or a gradient is not finite, or a measured loss is not positive.
    """
    settings = setup.config.budgets
    smallest = int(min(settings.sizes, default=1.0) * setup.base_macs)
    judged_base = judge(setup, setup.base_model(weights).eval(), interval, smallest, "budgets", base_losses)
    short = _ShortTraining.of(setup, interval, base_losses)
    entries, notes, sizes = [judged_base.entry], [], []
    whole: list[float] = []
    for fraction in (1.0, *sorted(settings.sizes, reverse=True)):
        model, macs = setup.base_model(weights), setup.base_macs
        if fraction < 1.0:
            try:
                result, compensating = judged_base.cut(setup, model, fraction)
            except TargetError as error:
                notes.append(f"Interval {interval.index}: size {fraction} cannot be reached ({error})")
                continue
            model, macs = result.model, result.plan.macs
            entries += compensating
        lengths = short.lengths(macs)
        losses = short.losses(model, lengths, fraction)
        images, looks = lengths[-1] * setup.config.run.batch_size, len(lengths) * settings.trial_images
        entries.append(Entry("budgets", interval.index, "training", images, training_macs(macs, images)))
        entries.append(Entry("budgets", interval.index, "measuring", looks, macs * looks))
        if fraction < 1.0:
            sizes.append(TriedSize(fraction, tuple(math.log(loss / like) for loss, like in zip(losses, whole, strict=True))))
        else:
            whole = losses
    return Trial(tuple(sizes), whole[-1], tuple(entries), tuple(notes))


def trial_macs(setup: Setup, looks: float = 1.0) -> int:
    """Return the most that measured budgets may cost, all intervals together.

    Args:
        setup: The run.
        looks: As for `scoring_macs`.
    """
    settings = setup.config.budgets
    lengths = setup.config.trial_lengths
    images = (lengths[-1] + 1) * setup.config.run.batch_size  # a smaller network's steps are rounded, by less than one
    each = training_macs(setup.base_macs, images) + setup.base_macs * len(lengths) * settings.trial_images + compensation_macs(setup)
    return setup.config.intervals.count * (scoring_macs(setup, looks) + (1 + len(settings.sizes)) * each)


@dataclass(frozen=True)
class _ShortTraining:
    """Training of one interval's trials: the experts' loss, optimizer, precision and checks; every process trains on the whole batch.

    The learning rate rises and stays up, without decay, and losses are those of averaged weights, so that one trial covers several lengths.

    Attributes:
        setup: The run.
        interval: Where the network works.
        stage: The experts' settings without decay.
        draws: Batches.
        judged: Fixed batches that the loss is measured on, in float32 as all losses are that the run compares.
    """

    setup: Setup
    interval: Interval
    stage: StageConfig
    draws: Draws = field(repr=False)
    judged: Sequence[NoisyBatch] = field(repr=False)

    @classmethod
    def of(cls, setup: Setup, interval: Interval, base_losses: Losses) -> _ShortTraining:
        stage = replace(setup.config.experts, decay="constant", warmup=_TRIAL_WARMUP)
        draws = setup.draws(f"trial-{interval.index}", stage, interval.first, interval.last, base_losses)
        draws.rank, draws.world = 0, 1
        process = setup.process(setup.config.experts, interval.first, interval.last, base_losses)
        judged = training_batches(setup, process, interval.first, interval.last, setup.config.budgets.trial_images)
        return cls(setup, interval, stage, draws, judged)

    def lengths(self, macs: int) -> list[int]:
        """Return steps of a network of that many MACs after which the loss is measured."""
        more = self.setup.base_macs / macs if self.setup.config.compute.saved_to_recovery else 1.0
        return [round(length * more) for length in self.setup.config.trial_lengths]

    def losses(self, model: nn.Module, lengths: Sequence[int], fraction: float) -> list[float]:
        """Train a network and return its loss after each of some numbers of steps.

        Args:
            model: The network, which is trained in place.
            lengths: Numbers of steps, rising.
            fraction: Its size, for messages.

        Raises:
            TrainingError: If a loss or a gradient is not finite, or a measured loss is not positive.
        """
        training = Training(model, AveragedWeights(model, _TRIAL_EMA), new_optimizer(model, self.stage))
        objective = Objective(self.setup.calling)
        found: list[float] = []
        with TrainingStep.prepared(training, objective, self.stage.clip, self.setup.accelerator) as step:
            for number in range(lengths[-1]):
                model.train()
                seed = derived_seed(self.setup.config.seed, self.draws.stage, "dropout", number)
                rate = learning_rate(self.stage, number / lengths[-1])
                outcome = step.take(self.draws.batch(number, self.setup.device), rate, seed)
                if outcome.problem is not None:
                    raise self._failed(fraction, f"at step {number + 1} of {lengths[-1]} {outcome.problem}")
                if number + 1 in lengths:
                    with training.ema.swapped_in(model):
                        found.append(interval_loss(model, objective, self.judged))
        if not all(math.isfinite(loss) and loss > 0.0 for loss in found):
            raise self._failed(fraction, f"after {lengths} steps its loss was {', '.join(f'{loss:.4g}' for loss in found)}")
        return found

    def _failed(self, fraction: float, what: str) -> TrainingError:
        advice = ", or remove the size (budgets.sizes)" if fraction < 1.0 else ""
        return TrainingError(
            f"Size {fraction} was tried in interval {self.interval.index}, and {what}; its damage cannot be measured. "
            f"Lower experts.learning_rate{advice}."
        )
