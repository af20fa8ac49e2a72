"""The burden of noise levels: against a process whose denoiser is known in closed form, and in runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from proxyprune.diffusion import StepAdaptiveTrainer
from proxyprune.diffusion.config.run_config import NoiseConfig, StepAdaptiveConfig
from proxyprune.diffusion.process.complexity import Complexity, acceleration, angles, energy, flow_of
from proxyprune.diffusion.process.intervals import balanced, uniform
from proxyprune.diffusion.process.noise_schedule import NoiseSchedule
from proxyprune.diffusion.stages.budgets import by_burden, weighted_mean
from proxyprune.errors import InputError, TargetError
from tests.shared.diffusion_runs import small_config

VARIANCE = 0.3
"""Of each pixel of normally distributed images, for which the best denoiser is linear."""


def best_flow(schedule):
    """Return the flow of the best denoiser for such images, through what a network of this prediction would return."""

    def flow(state, timestep):
        signal, noise = float(schedule.signal[timestep]), float(schedule.noise[timestep])
        noisy = state * math.hypot(signal, noise)
        image = signal * VARIANCE / (signal**2 * VARIANCE + noise**2) * noisy
        epsilon = (noisy - signal * image) / noise
        predicted = {"epsilon": epsilon, "sample": image, "v_prediction": signal * epsilon - noise * image, "flow": epsilon - image}
        return flow_of(schedule.prediction, noisy, predicted[schedule.prediction], signal, noise)

    return flow


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_monitors_of_a_linear_denoiser_are_those_of_the_formula(prediction):
    """Whatever the network predicts: u = g(phi) y with g = sin cos (1 - v) / (v cos² + sin²), so y'' + y = (g' + g² + 1) y."""
    name = "flow" if prediction == "flow" else "squaredcos_cap_v2"
    schedule = NoiseSchedule.of(NoiseConfig(schedule=name, prediction=prediction))
    phi, generator = angles(schedule), torch.Generator().manual_seed(0)
    state = torch.randn(64, 1, 8, 8, generator=generator, dtype=torch.float64)

    def slope(angle):
        return math.sin(angle) * math.cos(angle) * (1 - VARIANCE) / (VARIANCE * math.cos(angle) ** 2 + math.sin(angle) ** 2)

    for timestep in (200, 500, 800):
        angle = float(phi[timestep])
        derivative = (slope(angle + 1e-5) - slope(angle - 1e-5)) / 2e-5
        scale = float(state.square().mean().sqrt())
        expected = abs(derivative + slope(angle) ** 2 + 1) * scale
        found = float(acceleration(best_flow(schedule), state, timestep, timestep - 1, phi))
        assert found == pytest.approx(expected, rel=0.02)
        assert float(energy(best_flow(schedule), state, timestep, generator)) == pytest.approx(abs(slope(angle)), rel=0.05)


def test_predictions_that_stay_carry_no_acceleration():
    """A denoiser that always sees the same image needs one step, so there is nothing to follow."""
    schedule = NoiseSchedule.of(NoiseConfig(schedule="squaredcos_cap_v2"))
    image = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8)

    def flow(state, timestep):
        signal, noise = float(schedule.signal[timestep]), float(schedule.noise[timestep])
        return flow_of("sample", state, image, signal, noise)

    state = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(acceleration(flow, state, 500, 490, angles(schedule))) < 1e-6


def test_equal_burden():
    """Each interval carries its share within one timestep; a constant density gives equal angles, and the exponent sharpens a peak."""
    schedule = NoiseSchedule.of(NoiseConfig(schedule="squaredcos_cap_v2"))
    flat = Complexity("energy", (0.1, 1.4), (2.0, 2.0), 0.5)
    cuts = balanced(schedule, 4, flat.burden(schedule)).over(schedule)
    phi = angles(schedule)
    widths = [phi[member.last] - phi[member.first] for member in cuts]
    assert max(widths) - min(widths) < 0.01
    shares = {}
    for exponent in (0.5, 2.0):
        burden = Complexity("energy", (0.1, 0.7, 1.4), (1.0, 8.0, 1.0), exponent).burden(schedule)
        assert burden.sum() == pytest.approx(1.0)
        carried = [burden[member.first : member.last + 1].sum() for member in balanced(schedule, 5, burden).over(schedule)]
        assert np.abs(np.asarray(carried) - 0.2).max() < 1.5 * burden.max()
        shares[exponent] = burden[np.abs(phi - 0.7) < 0.1].sum()
    assert shares[2.0] > 1.5 * shares[0.5]


def test_a_burden_in_one_timestep_is_refused():
    """It can be an interval of its own, and not two."""
    burden = np.zeros(1000)
    burden[500] = 1.0
    schedule = NoiseSchedule.of(NoiseConfig())
    assert [member.timesteps for member in balanced(schedule, 3, burden).over(schedule)] == [500, 1, 499]
    with pytest.raises(InputError, match="1 of 4 intervals hold none of the 1000 timesteps"):
        balanced(schedule, 4, burden)


def test_a_curve_that_is_not_finite_is_refused():
    """A network that diverged gives one."""
    with pytest.raises(InputError, match="finite acceleration above 0"):
        Complexity("acceleration", (0.1, 0.2), (1.0, float("nan")), 0.5)


def test_budgets_in_proportion_to_the_burden():
    """They meet the target from below, keep to their bounds, and equal burdens give equal sizes."""
    steps = (10, 10, 20, 10)
    found = by_burden(0.6, steps, (1.0, 2.0, 3.0, 9.0), 0.35)
    assert weighted_mean(found.fractions, steps) == pytest.approx(0.6)
    assert found.fractions == tuple(sorted(found.fractions))
    assert min(found.fractions) == 0.35
    assert by_burden(0.5, steps, (0.25,) * 4, 0.35).fractions == pytest.approx((0.5,) * 4)
    with pytest.raises(TargetError, match=r"smallest size is 0\.35"):
        by_burden(0.3, steps, (1.0,) * 4, 0.35)


@pytest.mark.parametrize("monitor", ["acceleration", "energy"])
def test_a_run_with_intervals_and_budgets_by_complexity(tmp_path, monitor):
    """Its curve is measured once, costs little, is in layout and ledger, and is read back."""
    changes = {"intervals.method": "complexity", "intervals.monitor": monitor, "intervals.bins": 6, "intervals.images": 4}
    config = small_config(tmp_path, budgets__method="complexity", compute__reference_steps=60).with_values(changes)
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    pipeline = trainer.train()
    layout = StepAdaptiveTrainer(config, tmp_path / "run").layout()
    assert layout.complexity is not None
    assert layout.complexity == trainer.layout().complexity
    assert layout.complexity.monitor == monitor
    assert layout.intervals.method == "complexity"
    spent = trainer.ledger().by_stage()["intervals measuring"]
    assert spent == 2 * 4 * len(layout.complexity.phi) * trainer.setup.base_macs
    burden = layout.complexity.burden(trainer.setup.schedule)
    carried = [burden[member.first : member.last + 1].sum() for member in layout.members]
    assert max(carried) - min(carried) < 3 * burden.max()
    assert layout.budgets.mean <= config.budgets.target
    assert pipeline.relative_macs(20) <= config.budgets.target
    assert json.loads((tmp_path / "run" / "layout.json").read_text())["complexity"]["monitor"] == monitor
    assert layout.intervals != uniform(trainer.setup.schedule, 2)


def test_settings_that_do_not_fit_are_named():
    """Together, before anything is computed."""
    wrong = {"intervals.method": "complexity", "intervals.monitor": "speed", "intervals.exponent": 0.0, "intervals.bins": 2}
    with pytest.raises(InputError, match=r"intervals\.monitor must be one of .*intervals\.exponent must be above 0.*intervals\.bins"):
        StepAdaptiveConfig().with_values(wrong)
