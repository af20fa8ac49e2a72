"""Weights that are functions of parameters: kept weights keep their values when others leave, or nothing is cut."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as masks
from masking import assert_close
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import proxyprune as pp


class Net(nn.Module):
    """Three convolutions; `norm` makes each of them a normalised one."""

    def __init__(self, norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = norm(nn.Conv1d(8, 24, 7, padding=3))
        self.b = norm(nn.Conv1d(24, 32, 3, padding=1))
        self.c = norm(nn.Conv1d(32, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


X = torch.randn(2, 8, 40)
NORMS = {
    "parametrized": weight_norm,
    "of everything": lambda layer: weight_norm(layer, dim=None),
    "along inputs": lambda layer: weight_norm(layer, dim=1),
    "hook": lambda layer: torch.nn.utils.weight_norm(layer),
}


def without_norm(model: nn.Module) -> Net:
    """Return the same weights in plain layers, in double precision."""
    plain = Net(lambda layer: layer)
    with torch.no_grad():
        model(X)  # the hook computes its weight when the layer runs
        for name in "abc":
            layer, other = getattr(model, name), getattr(plain, name)
            other.weight = nn.Parameter(layer.weight.detach().clone())
            other.bias = nn.Parameter(layer.bias.detach().clone())
    return plain.double()


def masked(model: Net, result: pp.PruneResult) -> Net:
    """Return the unpruned network with plain weights, zero where the pruned one has none."""
    plain = without_norm(model)
    kept = {cut.parameter.partition(".")[0]: cut.kept for cut in result.surgery.cuts if cut.parameter.endswith("bias")}
    with torch.no_grad():
        for name, rows in kept.items():
            layer = getattr(plain, name)
            gone = [row for row in range(layer.weight.shape[0]) if row not in rows]
            layer.weight[gone] = 0.0
            layer.bias[gone] = 0.0
    return plain


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_pruning_equals_masking_of_the_weights_that_are_used(norm):
    """Gains are scaled by the share of the norm that stays, so the pruned network computes what the masked one does."""
    model = Net(norm).eval()
    result = pp.prune(Net(norm).eval(), X[:1], 0.5, inplace=True)  # torch does not copy a module with the hook
    assert {cut.parameter for cut in result.surgery.cuts} >= {"a.bias", "b.bias"}
    assert_close([masked(model, result)(X.double())], [result.model.double()(X.double())], "masked and pruned outputs")


def test_the_original_keeps_its_gains():
    """Scaling a gain that is not cut leaves the caller's model alone."""
    model = Net(weight_norm).eval()
    before = copy.deepcopy(model.state_dict())
    result = pp.prune(model, X[:1], 0.5)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert not torch.equal(result.model.state_dict()[GAIN], before[GAIN])


GAIN = "c.parametrizations.weight.original0"


def test_the_record_of_the_surgery_has_the_gains(tmp_path):
    """A saved network loads with the gains that were scaled, and the record goes through JSON."""
    model = Net(weight_norm).eval()
    result = pp.prune(model, X[:1], 0.5)
    assert {entry.parameter.partition(".")[0] for entry in result.surgery.rescaled} == {"b", "c"}
    assert pp.Surgery.from_dict(json.loads(json.dumps(result.surgery.to_dict()))) == result.surgery
    pp.save(result, tmp_path / "pruned")
    loaded = pp.load(tmp_path / "pruned", lambda: Net(weight_norm).eval())
    assert torch.equal(loaded(X), result.model(X))


def test_shadow_weights_keep_what_they_keep():
    """A carried state has its gains scaled by its own norms; the state of the model itself becomes that of the pruned model."""
    model = Net(weight_norm).eval()
    result = pp.prune(model, X[:1], 0.5)
    carried = pp.carry_state(model.state_dict(), result.surgery, result.model)
    assert all(torch.allclose(tensor, result.model.state_dict()[name]) for name, tensor in carried.items())


class Standardised(nn.Conv2d):
    """Weight standardisation as BiT and NF-ResNets do it, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Fused(nn.Conv2d):
    """The same by timm's trick: batch norm of the reshaped weight."""

    def forward(self, x: Tensor) -> Tensor:
        flat = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, flat.reshape_as(self.weight), self.bias, padding=self.padding)


@pytest.mark.parametrize("kind", [Standardised, Fused])
def test_what_weights_are_standardised_over_stays(kind):
    """A mean over kept weights is another one than over all, and no gain makes up for it: these inputs are pinned, outputs are cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), kind(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()
    image = torch.randn(1, 3, 8, 8)
    result = pp.prune(model, image, 0.8)
    assert {group.id for group in result.graph.prunable} == {"2.weight:0"}
    assert result.model(image).shape == (1, 4, 8, 8)


def with_masks(model: nn.Module) -> nn.Module:
    """Return the model with a mask of `torch.nn.utils.prune` over the weight of every layer."""
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            masks.l1_unstructured(layer, "weight", 0.3)
    return model.eval()


def convolutions() -> nn.Sequential:
    """Return three convolutions with the same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 4, 1))


def test_masked_weights_are_cut_on_both_sides():
    """A weight times its mask is a weight: inputs leave as well as outputs, and pruning equals slicing them by hand."""
    image = torch.randn(1, 3, 8, 8)
    result = pp.prune(with_masks(convolutions()), image, 0.5)
    assert {group.id for group in result.graph.prunable} == {"0.bias:0", "2.bias:0"}
    by_hand = with_masks(convolutions())
    kept = {(cut.parameter, cut.dim): list(cut.kept) for cut in result.surgery.cuts}
    with torch.no_grad():
        first, second, third = (by_hand[index] for index in (0, 2, 4))
        hidden = F.conv2d(image, first.weight_orig * first.weight_mask, first.bias, padding=1)[:, kept["0.bias", 0]].relu()
        weight = (second.weight_orig * second.weight_mask)[:, kept["0.bias", 0]]
        hidden = F.conv2d(hidden, weight, second.bias, padding=1)[:, kept["2.bias", 0]].relu()
        expected = F.conv2d(hidden, (third.weight_orig * third.weight_mask)[:, kept["2.bias", 0]], third.bias)
        torch.testing.assert_close(result.model(image), expected)


class ByHand(nn.Conv2d):
    """Weight normalisation by hand, in three ways."""

    def __init__(self, inputs: int, outputs: int, way: str) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.way = way
        self.gain = nn.Parameter(0.5 + torch.rand(outputs) if way == "normalize" else 0.5 + torch.rand(outputs, 1, 1, 1))

    def effective(self) -> Tensor:
        """Return the weight that the convolution uses."""
        if self.way == "norm":
            return self.gain * self.weight / torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        if self.way == "squares":
            return self.weight * (self.gain * torch.rsqrt(self.weight.square().sum((1, 2, 3), keepdim=True) + 1e-12))
        return (self.gain[:, None] * F.normalize(self.weight.flatten(1), dim=1)).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective(), self.bias, padding=1)


@pytest.mark.parametrize("way", ["norm", "squares", "normalize"])
def test_weights_that_code_normalises_by_hand_keep_their_values(way: str, tmp_path):
    """The gain is scaled however the norm is written, so kept weights are those of the unpruned network; saving and loading keep them."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(ByHand(3, 16, way), nn.ReLU(), ByHand(16, 24, way), nn.ReLU(), ByHand(24, 4, way)).eval()

    model, image = build(), torch.randn(1, 3, 8, 8)
    result = pp.prune(model, image, 0.5)
    kept = {(cut.parameter, cut.dim): torch.tensor(cut.kept) for cut in result.surgery.cuts}
    assert kept.keys() >= {("2.weight", 1), ("4.weight", 1)}
    for index in (0, 2, 4):
        expected = model[index].effective()
        for dim in (0, 1):
            if (f"{index}.weight", dim) in kept:
                expected = expected.index_select(dim, kept[f"{index}.weight", dim])
        torch.testing.assert_close(result.model[index].effective(), expected)
    pp.save(result, tmp_path / "pruned")
    assert torch.equal(pp.load(tmp_path / "pruned", build)(image), result.model(image))
    carried = pp.carry_state(model.state_dict(), result.surgery, result.model)
    assert all(torch.allclose(tensor, result.model.state_dict()[name]) for name, tensor in carried.items())


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated")
@pytest.mark.parametrize("norm", [spectral_norm, torch.nn.utils.spectral_norm])
def test_spectral_normalisation_pins_its_layer_and_leaves_the_rest(norm):
    """A cut would change the norm, and no gain makes up for it: the layer stays whole, costs nothing unknown, and others are cut."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), norm(nn.Conv2d(16, 16, 3)), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 4, 1)
    image = torch.randn(1, 3, 8, 8)
    result = pp.prune(nn.Sequential(*layers).eval(), image, 0.95, inplace=True)
    assert {group.id for group in result.graph.prunable} == {"4.weight:0"}
    assert any("normalised over" in reason for reason in result.report.pinned.values())
    assert result.report.uncosted_ops == ()
