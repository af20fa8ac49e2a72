"""Presets: every network is built, planned and counted, on images of the right size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from proxyprune.cli import main
from proxyprune.diffusion.presets import CONFIGS, MODELS


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
    """Four intervals, budgets whose mean is the target, and the exact cost of the network."""
    plan = planned(preset, tmp_path)
    assert len(plan["members"]) == 4
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
