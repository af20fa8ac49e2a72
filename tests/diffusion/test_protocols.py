"""The protocols that stand for the types of accelerate and diffusers, which ship none, fit the real classes."""

from __future__ import annotations

import pytest
from diffusion_runs import small_config

from proxyprune.diffusion import NoiseConfig
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.sampling.schedulers import sampler
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.diffusion.training.make_accelerator import make_accelerator
from proxyprune.errors import InputError


def test_accelerate_has_all_members(tmp_path):
    """Those that the protocol names."""
    assert isinstance(make_accelerator(small_config(tmp_path), RunFolder(tmp_path / "run")), Accelerator)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "euler", "heun", "unipc"])
def test_schedulers_have_all_members(name):
    """Those that the protocol names, for every short name."""
    assert isinstance(sampler(name, training_scheduler(NoiseConfig())), Scheduler)
    assert isinstance(training_scheduler(NoiseConfig(schedule="flow", prediction="flow")), Scheduler)


def test_a_setup_for_planning_cannot_train(tmp_path):
    """It has no accelerator, and the message says how to make one that has."""
    setup = Setup.of(small_config(tmp_path))
    assert setup.device.type == "cpu"
    with pytest.raises(InputError, match=r"can only plan.*make_accelerator"):
        _ = setup.accelerator
