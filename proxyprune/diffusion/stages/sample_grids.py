"""Sample grids while a stage is trained, from averaged weights; where an expert does not work, the base does. The ledger has their cost."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from torch import Tensor

from proxyprune.diffusion.data.image_data import to_bytes
from proxyprune.diffusion.data.write_images import grid, save_picture
from proxyprune.diffusion.process.intervals import Interval, Intervals
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.run_folder import StageFolder
from proxyprune.diffusion.sampling.denoise import ExpertSampler, conditions, image_generators, initial_noise
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.training.ledger import TRAINING_PASSES, Entry, affordable_steps
from proxyprune.diffusion.training.state import Training

_STEPS, _IMAGES = 20, 16


def affordable_steps_and_grids(setup: Setup, budget_macs: int, macs: int, teacher_macs: int = 0, start: int = 0) -> int:
    """Optimizer steps that a budget pays for, with the sample grids that fall due meanwhile.

    Args:
        setup: The run.
        budget_macs: What may be spent.
        macs: MACs of the trained network.
        teacher_macs: MACs of a teacher that runs forward on every image.
        start: Steps that the stage has done before.
    """
    config = setup.config.run
    most = affordable_steps(budget_macs, macs, config.batch_size, teacher_macs)
    if not config.sample_every:
        return most
    step, one_grid = config.batch_size * (TRAINING_PASSES * macs + teacher_macs), _STEPS * _IMAGES * setup.base_macs

    def cost(steps: int) -> int:
        return steps * step + ((start + steps) // config.sample_every - start // config.sample_every) * one_grid

    return bisect.bisect_right(range(1, most + 1), budget_macs, key=cost)


@dataclass(frozen=True)
class SampleGrids:
    """Draws a grid of samples into the folder of a stage when it is called.

    Attributes:
        setup: The run.
        folder: Of the stage.
        macs: Of the network that is trained.
        interval: Where it works; None for everywhere.
        base: Weights of the base, which works elsewhere.
    """

    setup: Setup
    folder: StageFolder
    macs: int
    interval: Interval | None = None
    base: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, training: Training) -> None:
        """Draw one, and enter what it cost."""
        setup, data = self.setup, self.setup.data
        labels = conditions(data.classes, 0, _IMAGES)
        if setup.calling.condition and labels is None and data.labels is not None:
            labels = data.labels[:_IMAGES]
        generators = image_generators(setup.config.seed, 0, _IMAGES)
        noise = initial_noise(generators, data.shape, setup.device)
        requires = [parameter.requires_grad for parameter in training.model.parameters()]
        with training.ema.swapped_in(training.model):
            sampler = self._sampler(training)
            images = sampler.denoise(noise, _STEPS, None if labels is None else labels.to(setup.device), generators)
        for parameter, wanted in zip(training.model.parameters(), requires, strict=True):
            parameter.requires_grad_(wanted)
        stage, index = ("base", None) if self.interval is None else ("expert", self.interval.index)
        training.ledger = training.ledger.add(Entry(stage, index, "samples", _IMAGES * _STEPS, _IMAGES * sampler.macs(_STEPS)))
        if setup.accelerator.is_main_process:
            save_picture(grid(to_bytes(images).cpu(), scale=4), self.folder.grid(training.step))

    def _sampler(self, training: Training) -> ExpertSampler:
        """Return the network where it works, the base at less noise and at more."""
        models, costs, ends = [training.model.eval()], [self.macs], []
        if self.interval is not None:
            base = self.setup.base_model(self.base).eval()
            if math.isfinite(self.interval.high_snr_db):
                models, costs, ends = [base, *models], [self.setup.base_macs, *costs], [self.interval.high_snr_db]
            if math.isfinite(self.interval.low_snr_db):
                models, costs, ends = [*models, base], [*costs, self.setup.base_macs], [*ends, self.interval.low_snr_db]
        experts = Experts.of(models, costs)
        experts.device = self.setup.device
        scheduler, trained = self.setup.default_sampler(), training_scheduler(self.setup.config.noise)
        return ExpertSampler(experts, Intervals(tuple(ends), "none"), self.setup.calling, scheduler, trained)
