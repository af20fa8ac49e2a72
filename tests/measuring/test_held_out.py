"""Measuring: the same number for the same network, and a caller's model that nobody touched."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from proxyprune import Recovery
from proxyprune.errors import InputError, MissingNeedError, ScoringError
from proxyprune.measuring.held_out import Data, data_digest, held_out_loss, recovered, weights_digest
from proxyprune.testing import residual_network


def network():
    return residual_network()


def data(loss_fn=None) -> Data:
    subject = network()
    return Data.of(subject.batches, None, loss_fn or subject.loss_fn)


def state(model: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_last_third_is_held_out():
    """Without other batches the last third is held out, at least one, and a note says so."""
    split = Data.of(list(range(7)), None, lambda model, batch: batch)
    assert (split.batches, split.held_out) == ((0, 1, 2, 3, 4), (5, 6))
    assert split.note == "The last 2 of 7 calibration batches were held out for measuring; no others were given."
    assert Data.of([1, 2], None, lambda model, batch: batch).held_out == (2,)
    given = Data.of([1, 2], [3], lambda model, batch: batch)
    assert (given.batches, given.held_out, given.note) == ((1, 2), (3,), None)


@pytest.mark.parametrize(
    ("batches", "loss_fn", "message"), [(None, len, "no batches"), ([1, 2], None, "no loss_fn"), ([1], len, "cannot be split")]
)
def test_what_is_missing_is_named(batches, loss_fn, message):
    """Nothing is measured with nothing."""
    with pytest.raises(MissingNeedError, match=message):
        Data.of(batches, None, loss_fn)


def test_the_loss_is_the_mean_in_evaluation_mode():
    """Dropout and batch statistics play no part, and the model's own mode comes back."""
    subject, split = network(), data()
    model = subject.model
    modes = [module.training for module in model.modules()]
    before = state(model)
    found = held_out_loss(model, split, seed=0)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        expected = sum(float(subject.loss_fn(model, batch)) for batch in split.held_out) / len(split.held_out)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_loss_that_is_not_finite_is_infinite():
    """NaN and infinity are the worst loss, not an error: a bad cut may do that."""
    assert held_out_loss(network().model, data(lambda model, batch: torch.tensor(math.nan)), seed=0) == math.inf
    signs = itertools.cycle((math.inf, -math.inf))
    assert held_out_loss(network().model, Data.of([1, 2], [3, 4], lambda model, batch: torch.tensor(next(signs))), seed=0) == math.inf


@pytest.mark.parametrize("loss_fn", [lambda model, batch: 1.0, lambda model, batch: torch.ones(3), lambda model, batch: 1 / 0])
def test_a_loss_that_is_no_loss_is_an_error(loss_fn):
    """The message names the batch."""
    with pytest.raises(ScoringError, match="held-out batch 0"):
        held_out_loss(network().model, data(loss_fn), seed=0)


def test_recovery_trains_a_copy_and_repeats():
    """The loss falls, the same seed gives the same weights, and the caller's model is as it was."""
    subject, split = network(), data()
    subject.model.stem.weight.requires_grad_(False)
    before, generator = state(subject.model), torch.get_rng_state()
    modes = [module.training for module in subject.model.modules()]
    trained = recovered(subject.model, split, Recovery(8, 1e-2), seed=1)
    again = recovered(subject.model, split, Recovery(8, 1e-2), seed=1)
    assert held_out_loss(trained, Data(split.batches, split.batches, split.loss_fn), 0) < held_out_loss(
        subject.model, Data(split.batches, split.batches, split.loss_fn), 0
    )
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.model.state_dict().items())
    assert [module.training for module in trained.modules()] == modes
    assert not trained.stem.weight.requires_grad
    assert trained.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_recovery_works_inside_no_grad_and_inference_mode():
    """What the caller has switched off is switched on for training only."""
    subject, split = network(), data()
    expected = state(recovered(subject.model, split, Recovery(2, 1e-2), seed=0))
    with torch.no_grad():
        found = state(recovered(subject.model, split, Recovery(2, 1e-2), seed=0))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_recovery_whose_loss_explodes_ends_quietly():
    """The network stays as far as it got, and measuring tells."""

    def loss_fn(model: nn.Module, batch: tuple) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1]) * math.nan

    model = recovered(network().model, data(loss_fn), Recovery(3, 1e-2), seed=0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("values", [{"steps": -1}, {"steps": True}, {"steps": 1.5}, {"learning_rate": 0.0}, {"learning_rate": math.nan}])
def test_a_recovery_that_makes_no_sense_is_refused(values):
    """Steps and rates are checked when they are given."""
    with pytest.raises(InputError, match="Expected"):
        Recovery(**values)


def test_digests_see_every_tensor():
    """A changed weight, or a batch in another order, is another digest."""
    model = network().model
    first = weights_digest(model)
    assert first == weights_digest(network().model)
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    assert weights_digest(model) != first
    one, other = torch.zeros(2), torch.ones(2)
    assert len({data_digest(value) for value in ([one, other], [other, one], ((one,), other), {"a": one, "b": other}, 3, "3")}) == 6
