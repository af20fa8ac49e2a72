"""Presets: every network is built, planned and counted, on images of the right size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from proxyprune.cli import main
from proxyprune.diffusion import StepAdaptiveConfig
from proxyprune.diffusion.config.presets import CONFIGS
from proxyprune.diffusion.networks import MODELS, source_of
from proxyprune.errors import ModelFileError


def planned(preset, folder):
    """`diffusion plan` of a preset on a few random images."""
    size, channels = MODELS[CONFIGS[preset]["model"]][0], 3 if preset == "ddpm-cifar10" else 1
    shape = (6, size, size, 3) if channels == 3 else (6, size, size)
    rng = np.random.default_rng(0)
    np.savez(folder / "few.npz", images=rng.integers(0, 256, shape, dtype=np.uint8), labels=np.arange(6))
    given = ("--source", str(folder / "few.npz"), "--set", "data.held_out=2")
    done = CliRunner().invoke(main, ["diffusion", "plan", "--preset", preset, *given, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("preset", [name for name in CONFIGS if name != "ddpm-cifar10"])
def test_presets_are_planned(preset, tmp_path):
    """The preset's number of intervals, budgets whose mean is the target, and the exact cost of the network."""
    plan = planned(preset, tmp_path)
    assert len(plan["members"]) == (3 if preset == "digits-small" else 4)
    assert plan["budgets"]["mean"] == pytest.approx(0.8, abs=1e-6)
    assert plan["curve"][0][0] == 0
    assert plan["curve"][-1][0] == 999
    assert plan["base_macs"] > 1_000_000


@pytest.mark.slow
def test_the_network_of_ddpm_is_that_of_the_paper(tmp_path):
    """35.7 M parameters (Ho et al. 2020, appendix B) and 6.222 GMACs at 32 x 32, attention included."""
    plan = planned("ddpm-cifar10", tmp_path)
    assert plan["base_params"] == 35_746_307
    assert round(plan["base_macs"] / 1e9, 3) == 6.222


def test_a_folder_of_several_weights_is_read_by_their_usual_name(tmp_path):
    """A half-precision or unaveraged copy beside the weights is not taken for them; several without the usual name have to be named."""
    config = StepAdaptiveConfig.preset("digits")
    kind, settings = MODELS["digits"][1](1, 8, 0)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind, **settings}), encoding="utf-8")
    network = source_of(config, (1, 8, 8), 0).build()
    usual, other = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "diffusion_pytorch_model.non_ema.safetensors"
    save_file(network.state_dict(), usual)
    save_file({name: torch.zeros_like(value) for name, value in network.state_dict().items()}, other)
    loaded = source_of(config.with_values({"model": str(tmp_path)}), (1, 8, 8), 0).build()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    usual.rename(tmp_path / "mine.safetensors")
    with pytest.raises(ModelFileError, match=r"mine\.safetensors.*--set weights="):
        source_of(config.with_values({"model": str(tmp_path)}), (1, 8, 8), 0)
