"""Experts that start from compensated weights, on the timesteps of their own interval."""

from __future__ import annotations

import pytest
import torch

from proxyprune.diffusion import StepAdaptiveTrainer
from proxyprune.diffusion.process.objective import Objective, Process, interval_loss
from proxyprune.diffusion.stages.judging import judge, training_batches
from tests.shared.diffusion_runs import small_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a run with a trained base, and the base."""
    folder = tmp_path_factory.mktemp("compensated")
    changes = {"pruning.compensate": True, "pruning.calibration_batches": 4, "pruning.calibration_images": 16}
    config = small_config(folder, compute__reference_steps=120).with_values(changes)
    trainer = StepAdaptiveTrainer(config, folder / "run")
    return trainer, trainer.setup.base_model(trainer.train_base()).eval()


def test_a_cut_that_is_compensated_starts_lower(trained):
    """On the batches of odd index, which decide; and its cost is that of the passes and of the sums."""
    trainer, model = trained
    setup, interval = trainer.setup, trainer.layout().members[1]
    target = int(0.5 * setup.base_macs)
    judged = judge(setup, model, interval, target, "expert")
    compensated, (entry,) = judged.cut(setup, model, 0.5)
    setup.config = setup.config.with_values({"pruning.compensate": False})
    plain, nothing = judged.cut(setup, model, 0.5)
    setup.config = trainer.config
    assert nothing == ()
    assert compensated.plan.kept == plain.plan.kept
    deciding = judged.batches[1::2]
    before, after = (interval_loss(result.model, judged.objective, deciding) for result in (plain, compensated))
    assert after < before
    assert (entry.stage, entry.interval, entry.what) == ("expert", 1, "compensation")
    shown = sum(map(len, judged.batches))
    assert entry.macs > 2 * shown * compensated.plan.macs
    assert entry.macs < 60 * shown * setup.base_macs


def test_a_run_with_compensated_experts(trained):
    """The ledger has the compensation of every cut, averaged weights follow it, and the run keeps within its compute."""
    trainer, _ = trained
    pipeline = trainer.train()
    stages = trainer.ledger().by_stage()
    assert {name for name in stages if name.endswith("compensation")} == {"expert 1 compensation"}  # expert 0 stays whole
    assert trainer.ledger().share <= 1.0
    assert pipeline.relative_macs(20) <= trainer.config.budgets.target
    process = Process(trainer.setup.schedule)
    for member in trainer.layout().members:
        batches = training_batches(trainer.setup, process, member.first, member.last, 64)
        loss = interval_loss(pipeline.experts[member.index], Objective(trainer.setup.calling), batches)
        assert torch.isfinite(torch.tensor(loss))
        assert loss < 1.5
