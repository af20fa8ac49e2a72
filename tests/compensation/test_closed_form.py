"""Compensation of networks whose best weights are known: channels that others replace exactly cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dropped import noise, without
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import proxyprune as pp
from proxyprune.compensation.moments import Moments, MomentSizes
from proxyprune.compensation.ridge import Solution, ridge

COPIES = [0, 1, 0, 1, 4, 5, 4, 5]
"""Channels 2, 3, 6 and 7 of eight repeat others, inside each half."""


def convolution(n: int) -> Callable[..., nn.Module]:
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]


def transposed(n: int) -> Callable[..., nn.Module]:
    return (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1]


READERS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "linear": (0, lambda: nn.Linear(8, 5)),
    "linear without bias": (0, lambda: nn.Linear(8, 5, bias=False)),
    "turned linear": (0, lambda: Conv1D(5, 8)),
    **{f"convolution {n}d": (n, lambda n=n: convolution(n)(8, 5, 3, padding=1, stride=2)) for n in (1, 2, 3)},
    "same padding": (2, lambda: nn.Conv2d(8, 5, (4, 3), padding="same", dilation=2)),
    "circular padding": (2, lambda: nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular")),
    "grouped": (2, lambda: nn.Conv2d(8, 6, 3, groups=2)),
    **{f"transposed {n}d": (n, lambda n=n: transposed(n)(8, 5, 4, stride=2, padding=1)) for n in (1, 2, 3)},
    "grouped transposed": (2, lambda: nn.ConvTranspose2d(8, 6, 3, groups=2)),
}


def with_copies(dimensions: int, reader: nn.Module) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network with repeated channels before `reader`, and the shape of a sample."""
    first = nn.Linear(3, 8) if dimensions == 0 else convolution(dimensions)(3, 8, 1)
    with torch.no_grad():
        first.weight.copy_(first.weight[COPIES])
        first.bias.copy_(first.bias[COPIES])
    return nn.Sequential(first, nn.Tanh(), reader).double().eval(), (3, *(6,) * dimensions)


@pytest.mark.parametrize("largest_features", [4096, 1], ids=["exact", "by channel"])
@pytest.mark.parametrize("kind", READERS)
def test_copies_are_replaced(kind, largest_features):
    """When repeated channels leave, the refitted layer yields what the network yielded before."""
    torch.manual_seed(3)
    dimensions, make = READERS[kind]
    model, shape = with_copies(dimensions, make())
    example, batches = torch.zeros(1, *shape, dtype=torch.float64), noise(16, *shape)
    result = without(model, example, "0", {2, 3, 6, 7})
    settings = pp.CompensationSettings(largest_features=largest_features)
    fixed = pp.compensate(result, model, batches, settings=settings)
    (value,) = noise(4, *shape, count=1, seed=5)
    wanted = model(value)
    assert (result.model(value) - wanted).norm() > 0.05 * wanted.norm()
    assert (fixed.model(value) - wanted).norm() < 1e-2 * wanted.norm()
    assert fixed.report.compensation.refitted == ("2",)
    assert fixed.model.state_dict().keys() == result.model.state_dict().keys()


def test_linear_network_loses_nothing():
    """Any three channels of a linear network with three inputs carry everything; the reader can be exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 4)).double().eval()
    result = without(model, torch.zeros(1, 3, dtype=torch.float64), "0", range(5, 16))
    batches = noise(64, 3)
    fixed = pp.compensate(result, model, batches)
    assert (fixed.model(batches[0]) - model(batches[0])).norm() < 1e-2 * model(batches[0]).norm()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "root mean square": lambda: nn.RMSNorm(8),
    "layer": lambda: nn.LayerNorm(8),
    "group": lambda: nn.GroupNorm(2, 8),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norm_before_the_reader_sees_fewer_channels(kind):
    """Dropped channels have most of the statistic of a norm; the refit takes into account that the norm yields more after the cut."""
    torch.manual_seed(3)
    dimensions = 2 if kind == "group" else 0
    first = nn.Linear(3, 8, bias=False) if dimensions == 0 else nn.Conv2d(3, 8, 1, bias=False)
    with torch.no_grad():
        factors = torch.tensor([1.0, -1.0, 3.0, -3.0] * 2).reshape(-1, *[1] * (dimensions + 1))
        first.weight.copy_(first.weight[[0, 0, 0, 0, 4, 4, 4, 4]] * factors)
    reader = nn.Linear(8, 5, bias=False) if dimensions == 0 else nn.Conv2d(8, 5, 1, bias=False)
    model = nn.Sequential(first, NORMS[kind](), reader).double().eval()
    shape = (3, *(6,) * dimensions)
    result = without(model, torch.zeros(1, *shape, dtype=torch.float64), "0", {2, 3, 6, 7})
    fixed = pp.compensate(result, model, noise(64, *shape))
    (value,) = noise(16, *shape, count=1, seed=5)
    wanted = model(value)
    assert (result.model(value) - wanted).norm() > 0.2 * wanted.norm()
    assert (fixed.model(value) - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_constant_channel_goes_into_the_bias(bias):
    """A channel that is constant costs nothing where the reader has a bias; none is added where it has not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4, bias=bias)).double().eval()
    with torch.no_grad():
        model[0].weight[5] = 0.0
        model[0].bias[5] = 3.0
        model[0].bias[:5] = 0.0
    result = without(model, torch.zeros(1, 4, dtype=torch.float64), "0", {5})
    batches = noise(64, 4)
    fixed = pp.compensate(result, model, batches)
    assert (fixed.model[2].bias is not None) == bias
    if bias:
        assert torch.allclose(fixed.model(batches[1]), model(batches[1]), atol=1e-3)


def test_formula():
    """The solution is W_K + W_C H_CK (H_KK + lambda I)^-1, the form of the papers."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(1, 50, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    moments = Moments(MomentSizes(1, 4, 4), torch.device("cpu"))
    moments.add(inputs[..., :4], inputs @ weight.T)
    found = ridge(moments, weight[:, :4].T.unsqueeze(0), 0.3, intercept=False).slope[0].T
    gram = inputs[0].T @ inputs[0]
    kept, crossed = gram[:4, :4], gram[4:, :4]
    damped = kept + 0.3 * kept.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    assert torch.allclose(found, weight[:, :4] + weight[:, 4:] @ crossed @ torch.linalg.inv(damped))


@pytest.mark.parametrize("weighted", [True, False])
def test_error_is_that_of_the_residuals(weighted):
    """The error from moments is the weighted square of the residuals, with and without an intercept, over several calls."""
    torch.manual_seed(0)
    moments = Moments(MomentSizes(2, 3, 5), torch.device("cpu"))
    features, targets = torch.randn(2, 40, 3, dtype=torch.float64), torch.randn(2, 40, 5, dtype=torch.float64)
    weights = torch.rand(40, dtype=torch.float64) if weighted else None
    for rows in (slice(0, 15), slice(15, 40)):
        moments.add(features[:, rows], targets[:, rows], None if weights is None else weights[rows])
    solution = Solution(torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64))
    residuals = targets - features @ solution.slope - solution.intercept.unsqueeze(1)
    factors = torch.ones(40, dtype=torch.float64) if weights is None else weights
    wanted = (residuals.square() * factors.reshape(1, -1, 1)).sum(dim=1)
    assert torch.allclose(solution.error(moments), wanted)


def test_intercept_makes_the_mean_residual_vanish():
    """With an intercept the weighted mean of the residuals is zero for any ridge."""
    torch.manual_seed(0)
    moments = Moments(MomentSizes(1, 3, 2), torch.device("cpu"))
    features, targets, weights = torch.randn(1, 30, 3).double() + 2.0, torch.randn(1, 30, 2).double() - 1.0, torch.rand(30).double()
    moments.add(features, targets, weights)
    found = ridge(moments, torch.zeros(1, 3, 2, dtype=torch.float64), 10.0, intercept=True)
    residuals = targets - features @ found.slope - found.intercept
    assert float((residuals[0] * weights.unsqueeze(1)).sum(dim=0).abs().max()) < 1e-9


def test_statistics_of_norms_are_those_of_the_batches():
    """New running statistics of the first norm are mean and variance of what the fitted batches bring it."""
    from proxyprune.compensation.calibration_pass import CalibrationData
    from proxyprune.compensation.norm_statistics import batch_norms, reestimated

    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten()).double().eval()
    batches: list[Tensor] = noise(5, 2, 4, 4)
    found = reestimated(model, batch_norms(model), CalibrationData(batches, None, 0))
    whole = model[0](torch.cat(batches[::2]))
    variance, mean = torch.var_mean(whole, dim=(0, 2, 3))
    assert torch.allclose(found["1"]["running_mean"], mean)
    assert torch.allclose(found["1"]["running_var"], variance)
