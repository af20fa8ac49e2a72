"""Noise schedules, intervals, budgets, ledgers and configurations: closed forms and properties."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from proxyprune.diffusion import Intervals, Ledger, NoiseConfig, NoiseSchedule, StepAdaptiveConfig, allocate
from proxyprune.diffusion.config import setting_checks as limits
from proxyprune.diffusion.config.presets import CONFIGS
from proxyprune.diffusion.config.run_config import settings
from proxyprune.diffusion.process.intervals import best_cuts, dynamic, equal_db, measured, squared_deviation, uniform
from proxyprune.diffusion.process.noise_schedule import snr_of_steps, training_scheduler
from proxyprune.diffusion.process.objective import TARGETS, Process, min_snr_weight, relative_weight
from proxyprune.diffusion.sampling.schedulers import LOWEST_DB, check_start, sampler, unusable_steps
from proxyprune.diffusion.stages.budgets import Option, by_formula, by_measurement, formula, solve_k, weighted_mean
from proxyprune.diffusion.training.ledger import Entry, affordable_steps
from proxyprune.errors import ComputeError, InputError, TargetError, UnknownNameError

COSINE = NoiseSchedule.of(NoiseConfig(schedule="squaredcos_cap_v2"))
PROCESSES = (
    NoiseConfig(schedule="linear"),
    NoiseConfig(schedule="squaredcos_cap_v2"),
    NoiseConfig(schedule="scaled_linear", prediction="v_prediction", zero_terminal_snr=True),
    NoiseConfig(schedule="flow", prediction="flow"),
    NoiseConfig(schedule="flow", prediction="flow", shift=3.0),
)


def firsts(intervals: Intervals, schedule: NoiseSchedule = COSINE) -> list[int]:
    return [member.first for member in intervals.over(schedule)][1:]


def test_snr_is_that_of_cumulative_alphas():
    """SNR(t) = 10 log10(abar / (1 - abar)), from diffusers' own abar."""
    abar = training_scheduler(NoiseConfig()).alphas_cumprod.double().numpy()
    schedule = NoiseSchedule.of(NoiseConfig())
    np.testing.assert_allclose(schedule.snr_db, 10 * np.log10(abar / (1 - abar)), rtol=1e-9)


def test_betas_are_those_that_were_asked_for():
    """The process of published latents: square roots of the betas evenly spaced from 0.00085 to 0.012; diffusers' defaults otherwise."""
    schedule = NoiseSchedule.of(NoiseConfig(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(schedule.signal**2, np.cumprod(1 - betas), rtol=1e-4)
    usual = NoiseSchedule.of(NoiseConfig(schedule="linear"))
    np.testing.assert_allclose(usual.signal**2, np.cumprod(1 - np.linspace(0.0001, 0.02, 1000)), rtol=1e-4)


def test_known_cuts_of_the_cosine_schedule():
    """At T = 1000 and N = 4: equal dB degenerates without a clip, +-20 dB spreads it, dynamic programming on dB lies between."""
    assert firsts(equal_db(COSINE, 4, clip_db=1e9)) == [161, 943, 998]
    assert firsts(equal_db(COSINE, 4)) == [188, 496, 803]
    assert firsts(dynamic(COSINE, 4)) == [189, 510, 825]
    assert firsts(uniform(COSINE, 4)) == [250, 500, 750]


def test_zero_terminal_snr_is_clipped():
    """An SNR of -inf at the last timestep makes no boundary infinite and belongs to the noisiest interval."""
    schedule = NoiseSchedule.of(PROCESSES[2])
    assert schedule.snr_db[-1] == -math.inf
    for intervals in (equal_db(schedule, 4), dynamic(schedule, 4), uniform(schedule, 4)):
        assert np.isfinite(intervals.boundaries_db).all()
        assert intervals.interval_of(-math.inf) == 3
        assert intervals.interval_of(math.inf) == 0


@pytest.mark.parametrize("method", [uniform, equal_db, dynamic])
@pytest.mark.parametrize("config", PROCESSES, ids=lambda c: f"{c.schedule}-{c.shift}")
def test_intervals_partition_the_timesteps(config, method):
    """Every timestep lies in exactly one interval, in order, and the intervals survive JSON."""
    schedule = NoiseSchedule.of(config)
    intervals = method(schedule, 4)
    members = intervals.over(schedule)
    assert [t for m in members for t in range(m.first, m.last + 1)] == list(range(1000))
    assert Intervals.from_dict(intervals.to_dict()) == intervals


@pytest.mark.parametrize("steps", [1000, 100, 10])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "euler", "heun", "unipc"])
def test_samplers_agree_with_training_about_intervals(name, steps):
    """A step of any sampler at training timestep t is sent to the interval that trained on t."""
    config = NoiseConfig(schedule="linear")
    schedule = NoiseSchedule.of(config)
    scheduler = sampler(name, training_scheduler(config))
    scheduler.set_timesteps(steps)
    intervals = equal_db(schedule, 4)
    chosen = intervals.interval_of(snr_of_steps(scheduler))
    timesteps = scheduler.timesteps.numpy()
    # Where a sampler rounds its sigmas to timesteps, a step may lie at a boundary; it is then within one timestep of it.
    owner = intervals.interval_of(schedule.snr_db)
    for t, index in zip(timesteps, chosen, strict=True):
        around = {int(owner[int(np.clip(round(float(t)) + d, 0, 999))]) for d in (-1, 0, 1)}
        assert index in around
    assert {1, 2, 3} <= set(chosen)  # ten steps of DPM-Solver++ end above the noise of the cleanest interval
    assert (np.diff(chosen) <= 0).all()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "euler", "heun", "unipc"])
@pytest.mark.parametrize("kind", ["linear", "squaredcos_cap_v2"])
def test_samplers_stand_a_small_error_of_the_network(name, kind):
    """Data N(0, 1/4) with its exact denoiser, off by 0.01 everywhere: samples keep their mean.

    From the last timestep of the cosine schedule, where the signal's share is 1/20,000, the default spacing ends up 4 to 8 off.
    """
    scheduler, std = sampler(name, training_scheduler(NoiseConfig(schedule=kind))), 0.5
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(500, 1, 1, 1, generator=generator) * float(scheduler.init_noise_sigma)
    extra = {"generator": generator} if name == "ddpm" else {}
    for time in scheduler.timesteps:
        noisy, abar = scheduler.scale_model_input(images, time).double(), scheduler.alphas_cumprod.double()[int(time)]
        noise = (1 - abar).sqrt() / (abar * std**2 + 1 - abar) * noisy + 0.01
        images = scheduler.step(noise.float(), time, images, **extra).prev_sample
    assert abs(float(images.mean())) < 0.15
    assert abs(float(images.std()) - std) < 0.15


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_a_network_that_goes_astray_stays_in_the_range(name):
    """A network that predicts noise and is far off leaves images in [-1, 1] with samplers whose last step is the estimate they clip."""
    scheduler = sampler(name, training_scheduler(NoiseConfig(schedule="linear")))
    scheduler.set_timesteps(20)
    images = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    for time in scheduler.timesteps:
        images = scheduler.step(0.5 * scheduler.scale_model_input(images, time) + 1.0, time, images).prev_sample
    assert float(images.abs().max()) < 1.001


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++"])
def test_a_network_that_predicts_noise_begins_where_it_can(name, steps):
    """On the cosine schedule steps begin at -31 dB and not far above it; a network that predicts v begins at the last timestep."""
    scheduler = sampler(name, training_scheduler(NoiseConfig(schedule="squaredcos_cap_v2")))
    scheduler.set_timesteps(steps)
    levels = snr_of_steps(scheduler)[unusable_steps(scheduler) :]
    assert LOWEST_DB <= levels[0] < (-16.0 if steps == 10 else -29.0)
    of_v = sampler(name, training_scheduler(NoiseConfig(schedule="squaredcos_cap_v2", prediction="v_prediction")))
    of_v.set_timesteps(steps)
    assert unusable_steps(of_v) == 0


def test_a_start_in_the_middle_is_refused():
    """UniPC's leading spacing begins 500 of 1,000 steps at timestep 500: the sentence says where, and what to do."""
    scheduler = sampler("unipc", training_scheduler(NoiseConfig(schedule="squaredcos_cap_v2")))
    for steps in (20, 100, 500):
        scheduler.set_timesteps(steps)
        start = float(snr_of_steps(scheduler)[0])
        if steps < 500:
            check_start(scheduler, steps, start)
            continue
        with pytest.raises(InputError, match=r"500 steps at -?0 dB.*Take fewer"):
            check_start(scheduler, steps, start)


@pytest.mark.parametrize("name", ["flow", "dpm++"])
def test_flow_samplers_agree_whatever_the_shift(name):
    """Flow matching: the expert follows sigma, so a shifted sampler takes other numbers of steps in each, at the same SNR."""
    trained = training_scheduler(PROCESSES[3])
    intervals = equal_db(NoiseSchedule.of(PROCESSES[3]), 3)
    for shift in (1.0, 3.0):
        scheduler = sampler(name, training_scheduler(NoiseConfig(schedule="flow", prediction="flow", shift=shift)))
        scheduler.set_timesteps(20)
        sigmas = scheduler.sigmas[:20].double().numpy()
        with np.errstate(divide="ignore"):
            expected = intervals.interval_of(20 * np.log10((1 - sigmas) / sigmas))
        assert (intervals.interval_of(snr_of_steps(scheduler)) == expected).all()
    assert trained.config.shift == 1.0


@pytest.mark.parametrize("name", ["flow", "EDMEulerScheduler", "heun"])
def test_samplers_of_another_process_are_refused(name):
    """A scheduler whose cumulative alphas are not the process's would draw images far from the data: refused by name."""
    process = PROCESSES[2] if name == "heun" else PROCESSES[1]  # Heun cannot rescale its betas to a last step without signal
    with pytest.raises(InputError, match="another process"):
        sampler(name, training_scheduler(process))


def test_networks_that_predict_v_are_asked_from_the_last_timestep():
    """DDIM begins there, where there is nothing but noise; Heun, whose first step from there blows up, begins a little later."""
    trained = training_scheduler(NoiseConfig(schedule="squaredcos_cap_v2", prediction="v_prediction"))
    found = {}
    for name in ("ddim", "heun", "ddpm", "euler"):
        scheduler = sampler(name, trained)
        scheduler.set_timesteps(20)
        found[name] = int(scheduler.timesteps[0])
        assert not scheduler.config.get("clip_sample")
    assert found == {"ddim": 999, "heun": 950, "ddpm": 950, "euler": 999}


def test_a_sampler_that_stops_before_the_image_is_refused():
    """DEIS repeats its last sigma on straight paths, and would leave noise in every image."""
    scheduler = sampler("DEISMultistepScheduler", training_scheduler(PROCESSES[4]))
    scheduler.set_timesteps(20)
    with pytest.raises(InputError, match="stops before the image"):
        check_start(scheduler, 20, -20.0)
    for name in ("flow", "dpm++", "unipc"):
        fitting = sampler(name, training_scheduler(PROCESSES[4]))
        fitting.set_timesteps(20)
        check_start(fitting, 20, -20.0)


def test_a_margin_reaches_into_the_neighbours():
    """A tenth of the interval's own timesteps on both sides, and never beyond the process."""
    members = uniform(COSINE, 4).over(COSINE)
    assert [member.reach(0.1, 1000) for member in members] == [(0, 274), (225, 524), (475, 774), (725, 999)]
    assert [member.reach(0.0, 1000) for member in members] == [(0, 249), (250, 499), (500, 749), (750, 999)]


def test_an_interval_without_steps_keeps_its_best_size():
    """The sampler that budgets are counted with does not step into it, another may."""
    sizes = [Option(1.0, 100, 0.0), Option(0.5, 50, 0.4)]
    assert [option.fraction for option in allocate([sizes, sizes], (10, 0), 500)] == [0.5, 1.0]


def test_samplers_keep_the_process():
    """A sampler made for a process has that process's cumulative alphas, whatever its class's own defaults are."""
    trained = training_scheduler(NoiseConfig(schedule="squaredcos_cap_v2", prediction="v_prediction"))
    for name in ("ddim", "dpm++", "euler", "heun", "unipc"):
        other = sampler(name, trained)
        torch.testing.assert_close(other.alphas_cumprod, trained.alphas_cumprod)
        assert other.config.prediction_type == "v_prediction"


def test_best_cuts_are_best():
    """Dynamic programming finds the cheapest of all partitions."""
    points = np.random.default_rng(0).normal(size=(9, 2))
    cost = squared_deviation(points)
    every = [sum(cost[a, b] for a, b in itertools.pairwise((0, *cuts, 9))) for cuts in itertools.combinations(range(1, 9), 2)]
    found = best_cuts(cost, 3)
    assert sum(cost[a, b] for a, b in itertools.pairwise((0, *found, 9))) == pytest.approx(min(every))


def test_measured_intervals_follow_the_gradients():
    """Bins whose gradients point the same way stay together."""
    directions = np.eye(3)[[0, 0, 0, 1, 1, 2, 2, 2]]
    edges = [125 * k for k in range(9)]
    intervals = measured(COSINE, 3, edges, directions, np.ones(8), weight=0.0)
    assert firsts(intervals) == [375, 625]


def test_too_many_intervals_are_refused():
    """Intervals without timesteps are an error."""
    small = NoiseSchedule.of(NoiseConfig(timesteps=3))
    with pytest.raises(InputError, match="fewer intervals"):
        uniform(small, 5)


@pytest.mark.parametrize("count", [1, 2, 4, 50])
def test_mean_of_the_formula(count):
    """The mean over intervals is (N + 1) / 2N + k (N - 1) / 2N, which tends to (1 + k) / 2."""
    k = 0.3
    expected = (count + 1) / (2 * count) + k * (count - 1) / (2 * count)
    assert np.mean(formula(count, k)) == pytest.approx(expected)
    assert np.mean(formula(2000, k)) == pytest.approx((1 + k) / 2, abs=1e-3)
    assert formula(count, k, "clean") == formula(count, k, "noisy")[::-1]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=8), st.floats(0.01, 1.0), st.sampled_from(["clean", "noisy"]))
def test_k_is_solved(steps, k, end):
    """k from the mean gives back that mean, for any steps in the intervals and either end."""
    target = weighted_mean(formula(len(steps), k, end), steps)
    assert solve_k(target, steps, end) == pytest.approx(k, abs=1e-9)
    assert by_formula(target, steps, end).mean == pytest.approx(target)


def test_unreachable_target_is_refused():
    """The formula cannot go below what k = 0 gives, and the message says what that is."""
    with pytest.raises(TargetError, match=r"0\.625"):
        solve_k(0.5, (1, 1, 1, 1))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0.05, 1.0), st.sampled_from(["clean", "noisy"]))
def test_below_the_formula_its_proportions_stay(steps, share, end):
    """The target is met, the fractions go over into the formula's where it begins, and rise towards the same end."""
    lowest = formula(len(steps), 0.0, end)
    found = by_formula(share * weighted_mean(lowest, steps), steps, end)
    assert found.k == 0.0
    assert found.fractions == pytest.approx([share * fraction for fraction in lowest])
    assert found.mean == pytest.approx(share * weighted_mean(lowest, steps))


@pytest.mark.parametrize("target", [0.0, -0.5, 1.2])
def test_targets_that_are_no_share_are_refused(target):
    """Neither scaled nor solved."""
    with pytest.raises(TargetError):
        by_formula(target, (1, 1))


@given(st.data())
def test_allocation_is_optimal(data):
    """No choice that fits has less damage: compared with all of them."""
    count = data.draw(st.integers(1, 4))
    option = st.tuples(st.integers(1, 30), st.integers(0, 50)).map(lambda v: Option(0.5, v[0], float(v[1])))
    options = [data.draw(st.lists(option, min_size=1, max_size=4)) for _ in range(count)]
    steps = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    weights = data.draw(st.none() | st.lists(st.integers(1, 9).map(float), min_size=count, max_size=count))
    limit = data.draw(st.integers(1, 600))
    fitting = [c for c in itertools.product(*options) if sum(n * o.macs for n, o in zip(steps, c, strict=True)) <= limit]
    if not fitting:
        with pytest.raises(TargetError):
            allocate(options, steps, limit, weights)
        return
    chosen = allocate(options, steps, limit, weights)
    assert sum(n * o.macs for n, o in zip(steps, chosen, strict=True)) <= limit
    best = min(sum(w * o.damage for w, o in zip(weights or steps, c, strict=True)) for c in fitting)
    assert sum(w * o.damage for w, o in zip(weights or steps, chosen, strict=True)) == pytest.approx(best)


def test_damage_per_interval_favours_short_intervals():
    """Two intervals with the same curve: by steps both get the same size, by intervals the one that few steps pass gets the larger."""
    curve = [Option(1.0, 4000, 0.0)] + [Option(f, round(4000 * f), 0.1 * (1 / f - 1)) for f in (part / 40 for part in range(16, 40))]
    by_step = by_measurement([curve, curve], (10, 30), 0.7, 4000, "step")
    by_interval = by_measurement([curve, curve], (10, 30), 0.7, 4000)
    assert by_step.fractions[0] == pytest.approx(by_step.fractions[1], abs=0.1)
    assert by_interval.fractions[0] > by_step.fractions[0] + 0.1
    assert by_interval.mean <= 0.7
    assert "an interval" in by_interval.notes[0]


def test_ledger_enforces_its_limit():
    """Entries add up to the last MAC, and one too many is refused."""
    ledger = Ledger(100).add(Entry("base", None, "training", 10, 60), Entry("expert", 1, "scoring", 1, 40))
    assert ledger.share == 1.0
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    with pytest.raises(ComputeError, match="100"):
        ledger.add(Entry("expert", 2, "training", 1, 1))


def test_affordable_steps_count_backward_twice_and_the_teacher_once():
    """A step of 4 images costs 4 * (3 * macs + teacher)."""
    assert affordable_steps(1000, 10, 4, teacher_macs=20) == 5
    assert affordable_steps(999, 10, 4, teacher_macs=20) == 4


@pytest.mark.parametrize("prediction", list(TARGETS))
def test_targets_give_the_clean_image_back(prediction):
    """From the noisy image and the target, the clean image follows by each prediction's own formula."""
    image, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    a, s = (0.6, 0.8) if prediction != "flow" else (0.3, 0.7)
    x = a * image + s * noise
    target = TARGETS[prediction](image, noise, torch.tensor(a), torch.tensor(s))
    back = {"epsilon": (x - s * target) / a, "v_prediction": a * x - s * target, "sample": target, "flow": x - s * target}[prediction]
    torch.testing.assert_close(back, image, rtol=1e-6, atol=1e-6)


def test_relative_weights_make_timesteps_count_alike():
    """Weight times loss is the same at every timestep, and its mean is the interval's mean loss; a batch carries the weights."""
    curve = np.exp(np.linspace(-1.0, 2.0, 1000))
    weight = relative_weight([(0, float(curve[0])), (999, float(curve[-1]))], 200, 399, 1000)
    np.testing.assert_allclose(weight.numpy() * curve, curve[200:400].mean(), rtol=1e-12)
    images, timesteps = torch.zeros(2, 1, 4, 4), torch.tensor([200, 399])
    batch = Process(COSINE, weights=weight).batch(images, torch.ones_like(images), timesteps)
    torch.testing.assert_close(batch.weight, weight[timesteps].float())
    with pytest.raises(InputError, match="two weights for one loss"):
        StepAdaptiveConfig().with_values({"experts.weighting": "relative", "experts.min_snr_gamma": 5.0})
    with pytest.raises(InputError, match=r"size of at most budgets\.target"):
        StepAdaptiveConfig().with_values({"budgets.method": "measured", "budgets.target": 0.3})


@pytest.mark.parametrize("prediction", list(TARGETS))
def test_where_sampling_begins_there_is_a_weight(prediction):
    """At a timestep without signal min-SNR's own weight is nothing, for all but noise."""
    weight = min_snr_weight(prediction, torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0]), 5.0)
    assert weight[1] == 1.0
    assert 0.0 < weight[0] <= 1.0


def test_min_snr_weights_agree_between_predictions():
    """The same error of the clean image weighs the same, whatever is predicted."""
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0], dtype=torch.float64)
    noise, signal = (1 / (1 + snr)).sqrt(), (snr / (1 + snr)).sqrt()
    of_image = min_snr_weight("sample", snr, noise, 5.0)
    torch.testing.assert_close(min_snr_weight("epsilon", snr, noise, 5.0) * (signal / noise) ** 2, of_image)
    torch.testing.assert_close(min_snr_weight("v_prediction", snr, noise, 5.0) / noise**2, of_image)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_configurations_survive_json(name):
    """Every preset is valid and comes back from JSON as it was."""
    config = StepAdaptiveConfig.preset(name)
    assert StepAdaptiveConfig.from_dict(config.to_dict()) == config


def test_every_setting_can_be_set_by_name():
    """Each dotted name takes its own default back."""
    assert StepAdaptiveConfig().with_values(settings()) == StepAdaptiveConfig()
    with pytest.raises(UnknownNameError, match=r"budgets\.target"):
        StepAdaptiveConfig().with_values({"budget.target": 0.5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "other") for name in limits.CHOICES),
        *((name, 0) for name in limits.AT_LEAST_ONE),
        *((name, value) for name in limits.SHARES for value in (-0.1, 1.1, math.nan)),
        *((name, value) for name in limits.PARTS_OF_THE_WHOLE for value in (0.0, 1.1, math.nan)),
        *((name, value) for name in limits.ABOVE_ZERO for value in (0.0, math.inf, math.nan)),
        *((name, -1) for name in limits.NOT_NEGATIVE),
        *(("noise.beta_start", value) for value in (0.0, 0.02, math.nan)),
        *(("noise.beta_end", value) for value in (0.00001, 1.0, math.nan)),
        ("budgets.sizes", ()),
        ("budgets.sizes", (0.5, 1.0)),
        ("budgets.sizes", (0.5, 0.35, 0.5)),
        ("compute.expert_weights", (1.0, 2.0)),
        ("compute.expert_weights", (1.0, 1.0, 1.0, 0.0)),
        ("experts.teacher", "expert"),
        ("noise.schedule", "flow"),
        ("noise.zero_terminal_snr", True),
    ],
)
def test_a_value_outside_its_limits_is_named(name, value):
    """One setting that cannot be used is refused by its name and with what was found."""
    group, setting = name.split(".")
    config = StepAdaptiveConfig()
    with pytest.raises(InputError, match=rf"\(1 problem\): .*{setting}"):
        replace(config, **{group: replace(getattr(config, group), **{setting: value})})


def test_all_mistakes_are_reported_at_once():
    """Three mistakes in a configuration make one message with all three."""
    with pytest.raises(InputError) as caught:
        StepAdaptiveConfig.from_dict({"noise": {"prediction": "x"}, "budgets": {"target": 2.0}, "run": {"batch_size": 0}})
    assert all(name in str(caught.value) for name in ("noise.prediction", "budgets.target", "run.batch_size"))
