"""Layers that compute their weight become plain ones with the same outputs, and can then be cut on both sides."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from masking import assert_equals_masking, randomise
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from zoo import measured_macs

import proxyprune as pp
from proxyprune.errors import TargetError


class Scaled(nn.Conv2d):
    """Scaled weight standardisation with a gain, as in NFNets."""

    def __init__(self, inputs: int, outputs: int, **options) -> None:
        super().__init__(inputs, outputs, 3, **{"padding": 1} | options)
        self.gain = nn.Parameter(0.5 + torch.rand(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.gain * self.weight[0].numel() ** -0.5).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=scale, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


class PaddedBySize(Scaled):
    """The same with padding such that the output has size / stride entries, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
        return super().forward(F.pad(x, (missing[1] // 2, -(-missing[1] // 2), missing[0] // 2, -(-missing[0] // 2))))


class Block(nn.Module):
    """A bottleneck with a grouped convolution, as in NF-RegNets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.grouped, self.last = Scaled(width, width), Scaled(width, width, groups=4), Scaled(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.last(F.silu(self.grouped(F.silu(self.first(x)))))


def build() -> nn.Sequential:
    """Return a network of standardised convolutions, with the same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(Scaled(3, 16, stride=2), Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


IMAGE = (torch.randn(1, 3, 24, 24),)
LAYERS = ("0", "1.first", "1.grouped", "1.last", "2.first", "2.grouped", "2.last")


def test_a_standardised_network_is_cut_after_its_layers_are_made_plain(tmp_path):
    """Outputs stay, pruning equals masking, MACs are exact, and the pruned network loads; without it the target is out of reach."""
    with pytest.raises(TargetError, match=r"pp\.plain_weights\(model\)"):
        pp.prune(build(), IMAGE, 0.6)
    plain = pp.plain_weights(build())
    assert plain.layers == LAYERS
    assert plain.kept == {}
    torch.testing.assert_close(plain.model(*IMAGE), build()(*IMAGE))
    model = randomise(copy.deepcopy(plain.model))
    result = pp.prune(model, IMAGE, 0.6)
    assert_equals_masking(model, result.model, result.graph, result.plan, IMAGE)
    assert result.plan.macs == measured_macs(result.model, IMAGE)
    result = pp.prune(plain.model, IMAGE, 0.6)
    pp.save(result, tmp_path / "pruned")
    loaded = pp.load(tmp_path / "pruned", lambda: pp.plain_weights(build()).model)
    assert torch.equal(loaded(*IMAGE), result.model(*IMAGE))


def test_big_transfer_of_transformers_is_cut():
    """BiT with standardised convolutions, as published: the same outputs, then half of the MACs with masking equality."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "num_groups": 4, "embedding_size": 16}
    model = randomise(transformers.BitForImageClassification(transformers.BitConfig(**sizes))).eval()
    image = (torch.randn(1, 3, 64, 64),)
    plain = pp.plain_weights(model)
    assert "bit.embedder.convolution" in plain.layers
    torch.testing.assert_close(plain.model(*image).logits, model(*image).logits)
    result = pp.prune(plain.model, image, 0.5)
    assert result.plan.macs == measured_macs(result.model, image)
    assert_equals_masking(plain.model, result.model, result.graph, result.plan, image)


def test_the_model_stays_as_it_is_unless_asked():
    """A copy is changed; with inplace, the model itself."""
    model = build()
    assert pp.plain_weights(model).model is not model
    assert type(model[0]) is Scaled
    assert pp.plain_weights(model, inplace=True).model is model
    assert type(model[0]) is nn.Conv2d
    assert not model[0].training


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_parametrised_layers_of_every_kind_become_plain(norm):
    """Linear layers and convolutions of every dimension keep their outputs, without and with bias; training mode stays."""
    for layer, x in (
        (nn.Linear(6, 5), torch.randn(2, 6)),
        (nn.Conv1d(6, 4, 5, stride=2, padding=2, bias=False), torch.randn(2, 6, 16)),
        (nn.Conv2d(6, 4, 3, dilation=2, groups=2, padding_mode="circular", padding=1), torch.randn(2, 6, 9, 9)),
        (nn.Conv3d(6, 4, 3), torch.randn(2, 6, 5, 5, 5)),
    ):
        model = nn.Sequential(norm(layer), nn.ReLU())
        plain = pp.plain_weights(model)
        assert plain.layers == ("0",)
        assert type(plain.model[0]) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        assert plain.model[0].training
        assert plain.model.state_dict().keys() <= {"0.weight", "0.bias"}
        torch.testing.assert_close(plain.model.eval()(x), model.eval()(x))


def test_layers_that_are_plain_or_do_more_stay():
    """Plain layers are not listed, layers that pad by the size of their input are, and a pattern leaves others out."""
    model = nn.Sequential(Scaled(3, 8), PaddedBySize(8, 8, stride=2, padding=0), nn.Conv2d(8, 8, 1), Scaled(8, 8)).eval()
    plain = pp.plain_weights(model)
    assert plain.layers == ("0", "3")
    assert list(plain.kept) == ["1"]
    assert type(plain.model[1]) is PaddedBySize
    assert pp.plain_weights(model, "3").layers == ("3",)


def test_a_layer_that_stands_in_two_places_stays_one_layer():
    """Both places hold the same new layer; a parameter that another layer reads keeps its layer."""
    shared = Scaled(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    plain = pp.plain_weights(model)
    assert plain.model[0] is plain.model[2]
    assert type(plain.model[0]) is nn.Conv2d
    tied = nn.Sequential(Scaled(8, 8), Scaled(8, 8))
    tied[1].weight = tied[0].weight
    assert set(pp.plain_weights(tied).kept) == {"0", "1"}


def test_the_random_state_stays():
    """No initial weights are drawn."""
    model = build()
    before = torch.random.get_rng_state()
    pp.plain_weights(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_frozen_layers_stay_frozen():
    """A layer without trained parameters becomes one without, and nothing is computed with gradients."""
    model = nn.Sequential(Scaled(3, 8), Scaled(8, 8))
    model[0].requires_grad_(False)
    plain = pp.plain_weights(model).model
    assert [parameter.requires_grad for parameter in plain.parameters()] == [False, False, True, True]
    assert all(parameter.is_leaf for parameter in plain.parameters())
