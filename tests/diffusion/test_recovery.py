"""What short trials say about cuts that are trained for long: closed forms, noise, and edges."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from proxyprune.diffusion import DamageRecovery, Measurement, allocate
from proxyprune.diffusion.stages.budgets import by_measurement, weighted_mean
from proxyprune.diffusion.stages.recovery import FLOOR, PARTS, TriedSize, fit_recovery

BASE = 1_000_000
LENGTHS = (5, 10, 20, 40)
SIZES = (0.5, 0.35)
EXPERT = 1200.0


def trials(truth: DamageRecovery, noise: float = 0.0, seed: int = 0, lengths=LENGTHS, sizes=SIZES) -> tuple[tuple[TriedSize, ...], ...]:
    """Return what trials of a model would show, with noise on the log ratio of losses."""
    source = np.random.default_rng(seed)
    return tuple(
        tuple(TriedSize(f, tuple(truth.damage(i, f, n) + float(source.normal(0.0, noise)) for n in lengths)) for f in sizes)
        for i in range(len(truth.levels))
    )


def measurement(tried, lengths=LENGTHS, steps=EXPERT) -> Measurement:
    """Trials with what follows from them, for experts of that many steps."""
    return Measurement(tried, (0.1,) * len(tried), lengths, (steps,) * len(tried), fit_recovery(tried, lengths))


def test_what_follows_the_model_is_read_off_short_trials():
    """Thirty times their length away, and for sizes that were not tried; what is expected beforehand draws it a little."""
    truth = DamageRecovery((0.9, 1.4, 1.1), (0.4, 0.5, 0.65), 1.25)
    found = fit_recovery(trials(truth), LENGTHS)
    assert found.size_exponent == pytest.approx(truth.size_exponent, abs=0.05)
    for interval in range(3):
        for fraction in (0.8, 0.5, 0.35):
            assert found.damage(interval, fraction, EXPERT) == pytest.approx(truth.damage(interval, fraction, EXPERT), rel=0.45)


def test_cuts_that_heal_fast_are_told_from_cuts_that_do_not():
    """The interval that suffers more in every trial gets the smaller expert, where it is the one that heals."""
    heals, stays = 0, 1
    truth = DamageRecovery((3.0, 0.25), (0.9, 0.3), 1.2)
    tried = trials(truth)
    for one, other in zip(tried[heals], tried[stays], strict=True):
        assert all(a > b for a, b in zip(one.damages, other.damages, strict=True))
    measured = measurement(tried)
    options = [measured.options(interval, BASE) for interval in (heals, stays)]
    budgets = by_measurement(options, (25, 25), 0.6, BASE)
    assert budgets.fractions[heals] <= 0.45 < 0.75 <= budgets.fractions[stays]
    at_once = by_measurement([measurement(tried, steps=40).options(i, BASE) for i in (heals, stays)], (25, 25), 0.6, BASE)
    assert at_once.fractions[heals] > at_once.fractions[stays]


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_noisy_trials_cost_little(noise):
    """Over many sets of trials, budgets from the model lose less than those of what the last looks say, and than equal ones."""
    truth = DamageRecovery((0.9, 1.8, 1.4, 1.2), (0.45, 0.55, 0.6, 1.0), 1.2)
    steps, target = (10, 15, 16, 9), 0.6

    def lost(fractions) -> float:
        return math.fsum(truth.damage(index, fraction, EXPERT) for index, fraction in enumerate(fractions))

    def of(levels, exponents, size_exponent) -> tuple[float, ...]:
        model_of = DamageRecovery(levels, exponents, size_exponent)
        measured = Measurement(trials(truth), (0.1,) * 4, LENGTHS, (EXPERT,) * 4, model_of)
        return by_measurement([measured.options(index, BASE) for index in range(4)], steps, target, BASE).fractions

    best, model, last = lost(of(truth.levels, truth.exponents, truth.size_exponent)), [], []
    for seed in range(20):
        tried = trials(truth, noise, seed)
        found = fit_recovery(tried, LENGTHS)
        model.append(lost(of(found.levels, found.exponents, found.size_exponent)) - best)
        last.append(lost(of(tuple(max(1e-3, sizes[0].damages[-1]) for sizes in tried), (0.0,) * 4, 1.2)) - best)
    assert min(model) >= -1e-9
    assert np.mean(model) < 0.7 * np.mean(last)
    assert np.mean(model) < 0.5 * (lost((target,) * 4) - best)


def test_cuts_that_seem_to_help_do_not_waste_the_budget():
    """A cut that lowers the loss by chance has a small damage and not none, so the mean still comes within a fortieth of the target."""
    helps = tuple(TriedSize(f, (0.05, 0.01, -0.03, -0.06)) for f in SIZES)
    usual = trials(DamageRecovery((0.9,), (0.5,), 1.2))[0]
    measured = measurement((usual, helps))
    options = [measured.options(index, BASE) for index in range(2)]
    for choices in options:
        damages = [option.damage for option in choices]
        assert damages == sorted(damages, reverse=True)
        assert damages[0] > damages[1] > 0.0 == damages[-1]
    budgets = by_measurement(options, (3, 2), 0.83, BASE)
    assert 0.83 - 1 / PARTS < weighted_mean(budgets.fractions, budgets.steps) <= 0.83 + 1e-9
    assert budgets.fractions[0] > budgets.fractions[1]


def test_an_interval_whose_trials_scatter_says_less():
    """Looks that scatter by a third of the loss are drawn to what the other intervals show; the same looks without scatter are believed."""
    calm = trials(DamageRecovery((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), 1.2), 0.003, seed=1)
    low = DamageRecovery((0.1,), (0.5,), 1.2)
    quiet = trials(low)[0]
    wild = tuple(replace(size, damages=tuple(d + e for d, e in zip(size.damages, (0.3, -0.3, 0.3, -0.3), strict=True))) for size in quiet)
    sure, unsure = (fit_recovery((*calm, last), LENGTHS).damage(3, 0.5, 40) for last in (quiet, wild))
    usual = fit_recovery((*calm, quiet), LENGTHS).damage(0, 0.5, 40)
    assert sure < 0.3 * usual
    assert 0.5 * usual < unsure < 2.0 * usual
    assert fit_recovery((*calm, wild), LENGTHS).damage(0, 0.5, 40) == pytest.approx(usual, rel=0.1)


def test_sizes_reach_from_the_smallest_tried_to_the_whole():
    """With the MACs of the cut that was made, and the difference of losses where that is what counts."""
    measured = measurement(((TriedSize(0.33, (0.4, 0.3, 0.2, 0.15)),),))
    options = measured.options(0, BASE)
    assert [(o.fraction, o.macs) for o in (options[0], options[1], options[-1])] == [(0.33, 330_000), (0.35, 350_000), (1.0, BASE)]
    absolute = measured.options(0, BASE, "absolute")
    assert absolute[0].damage == pytest.approx(0.1 * math.expm1(options[0].damage))


def test_an_interval_in_which_no_size_could_be_reached_stays_whole():
    """And the others take its share of the cut; without any size at all there is nothing to choose."""
    usual = trials(DamageRecovery((0.9,), (0.5,), 1.2))[0]
    measured = measurement((usual, ()))
    options = [measured.options(index, BASE) for index in range(2)]
    assert [option.fraction for option in options[1]] == [1.0]
    assert [option.fraction for option in allocate(options, (1, 1), int(1.7 * BASE))] == [0.7, 1.0]
    assert [len(measurement(((), ())).options(index, BASE)) for index in range(2)] == [1, 1]


def test_one_look_is_enough_for_a_guess():
    """Trials of a single step: the exponent is what is expected beforehand, the level what was seen."""
    found = fit_recovery(((TriedSize(0.5, (0.2,)),),), (1,))
    assert found.exponents[0] == pytest.approx(0.5, abs=0.1)
    assert found.damage(0, 0.5, 1) == pytest.approx(0.2, rel=0.3)
    nothing = fit_recovery(((TriedSize(0.5, (0.0, 0.0)),),), (1, 2))
    assert 0.0 < nothing.damage(0, 0.5, 2) < FLOOR


def test_noise_is_settled():
    """However wildly trials scatter, the fit and the noise that it leaves agree in the end: more passes change nothing."""
    truth = DamageRecovery((0.9, 1.8, 1.4, 1.2), (0.45, 0.55, 0.6, 1.0), 1.2)
    for noise, seed in itertools.product((0.05, 0.1, 0.3), range(3)):
        tried = trials(truth, noise, seed)
        found = fit_recovery(tried, LENGTHS)
        assert fit_recovery(tried, LENGTHS, most_passes=60) == found
        assert all(found.damage(index, 0.5, LENGTHS[-1]) > 0.01 for index in range(4))


def test_measurements_are_kept_and_read_again():
    """To the last digit, through JSON; whoever draws them finds the curve beside."""
    measured = measurement(trials(DamageRecovery((0.9, 1.4), (0.4, 0.6), 1.3), 0.03))
    record = json.loads(json.dumps(measured.to_dict()))
    assert Measurement.from_dict(record) == measured
    assert [point[0] for point in record["remaining"][0]][:2] == [0.35, 0.375]
    assert record["remaining"][0][-1] == [1.0, 0.0]
    assert "as 1,200 steps" in measured.note()
    assert "900 to 1,200 steps" in replace(measured, expert_steps=(900.0, 1200.0)).note()
