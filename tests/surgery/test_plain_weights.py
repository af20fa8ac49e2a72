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


class PaddedOnOneSide(Scaled):
    """The same with outputs as large as those of a plain layer: an input of even size is padded on other sides."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.shape[-1] % 2 else F.pad(x[..., 1:], (0, 1)))


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


@pytest.mark.parametrize(("gain", "bias"), [(1e-6, 0.0), (1e-6, 1.0), (0.0, 0.0), (0.0, 1.0)])
def test_small_outputs_do_not_hide_what_a_layer_does(gain, bias):
    """Padding by the size of the input is noticed at any gain, also beside a bias; a layer with a zero weight stays."""
    model = nn.Sequential(PaddedOnOneSide(8, 8), Scaled(8, 8)).eval()
    for layer in model:
        nn.init.constant_(layer.gain, gain)
        nn.init.constant_(layer.bias, bias)
    plain = pp.plain_weights(model)
    assert plain.layers == (("1",) if gain else ())
    assert plain.kept["0"].startswith("does more with its input" if gain else "has a weight that is zero")


class Computing(nn.Linear):
    """A linear layer that multiplies by twice its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class WithContext(Computing):
    """A layer that reads an attribute which the network sets."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.context)


class OnlyLong(Computing):
    """A layer with an assertion about its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) > 1000, "too short"
        return super().forward(x)


class TwoInputs(Computing):
    """A layer with two inputs."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(scale * x)


class Doubled(Computing):
    """A layer with two products."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x, self.weight)


class Multiplied(Computing):
    """A layer without a function of torch's layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (2 * self.weight).T


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (WithContext(4, 4), "AttributeError"),
        (OnlyLong(4, 4), "AssertionError: too short"),
        (TwoInputs(4, 4), "TypeError"),
        (Computing(4, 4, device="meta"), "cannot be run alone"),
        (Doubled(4, 4), "more than one weight"),
        (Multiplied(4, 4), "in another way"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_that_cannot_be_examined_is_listed(layer, reason):
    """One unusual layer does not stop the others from being replaced."""
    plain = pp.plain_weights(nn.Sequential(layer, Computing(4, 4)))
    assert plain.layers == ("1",)
    assert list(plain.kept) == ["0"]
    assert reason in plain.kept["0"]


@pytest.mark.parametrize("kind", [nn.Linear, Computing])
def test_a_layer_whose_tensors_are_buffers_is_examined(kind):
    """A frozen layer with buffers only is plain if it multiplies by its buffer, and becomes plain if it computes a weight from it."""
    layer = kind(4, 4, bias=False, dtype=torch.float64)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    plain = pp.plain_weights(nn.Sequential(layer))
    assert plain.layers == (("0",) if kind is Computing else ())
    assert plain.kept == {}
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(plain.model(x), layer(x))


class Merging(nn.Linear):
    """A low-rank update that evaluation mode adds to the weight, as in loralib."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.merged = False
        self.update = nn.Parameter(torch.ones(4, 4))

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += -self.update if mode else self.update
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.update.T)


def test_a_layer_that_merges_weights_in_evaluation_mode_stays_as_it_is():
    """The mode is set without a call of `train`, so that weights, the flag and the outputs stay."""
    model = nn.Sequential(Merging())
    x = torch.randn(2, 4)
    before, weight = model(x), model[0].weight.detach().clone()
    pp.plain_weights(model, inplace=True)
    assert torch.equal(model[0].weight, weight)
    assert not model[0].merged
    assert model[0].training
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("norm", [spectral_norm, weight_norm, nn.utils.spectral_norm])
def test_transposed_convolutions_and_embeddings_become_plain(norm):
    """They keep their outputs, options and a trained bias."""
    for layer, x in (
        (nn.ConvTranspose1d(6, 4, 5, stride=2, padding=2, bias=False), torch.randn(2, 6, 16)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1, groups=2), torch.randn(2, 6, 9, 9)),
        (nn.ConvTranspose3d(6, 4, 3, dilation=2), torch.randn(2, 6, 5, 5, 5)),
        (nn.Embedding.from_pretrained(torch.randn(6, 4), freeze=False, padding_idx=1), torch.arange(6)),
    ):
        model = nn.Sequential(norm(layer)).eval()
        plain = pp.plain_weights(model, inplace=norm is nn.utils.spectral_norm)
        assert plain.layers == ("0",)
        assert type(plain.model[0]).__module__.startswith("torch.nn.modules")
        assert plain.model.state_dict().keys() <= {"0.weight", "0.bias"}
        assert all(parameter.requires_grad for parameter in plain.model.parameters())
        assert getattr(plain.model[0], "padding_idx", None) == getattr(layer, "padding_idx", None)
        torch.testing.assert_close(plain.model(x), layer(x))


def test_other_layers_that_compute_their_weight_are_listed():
    """A bilinear layer and an embedding that renormalises its rows stay; nothing is left out without a reason."""
    model = nn.ModuleList([weight_norm(nn.Bilinear(3, 3, 2)), spectral_norm(nn.Embedding(5, 3, max_norm=1.0)), nn.Embedding(5, 3)])
    plain = pp.plain_weights(model)
    assert plain.layers == ()
    assert list(plain.kept) == ["0", "1"]
    assert all("is not among the layers that are replaced" in reason for reason in plain.kept.values())


def test_a_model_that_is_itself_the_layer_is_replaced():
    """A plain layer is returned; in place, the model is listed instead."""
    model = Scaled(3, 8)
    plain = pp.plain_weights(model)
    assert (plain.layers, type(plain.model)) == (("",), nn.Conv2d)
    torch.testing.assert_close(plain.model(*IMAGE), model(*IMAGE))
    plain = pp.plain_weights(model, inplace=True)
    assert plain.model is model
    assert list(plain.kept) == [""]


def test_layers_with_hooks_are_listed_and_their_hooks_do_not_run():
    """A hook of the caller stays and sees no random inputs; the hooks of torch that compute a weight go with it."""
    model = nn.Sequential(*(Computing(4, 4) for _ in range(2)), nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[1].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[3].register_forward_hook(lambda *_: calls.append("plain"))
    plain = pp.plain_weights(model, inplace=True)
    assert plain.layers == ("2",)
    assert not plain.model[2]._forward_pre_hooks
    assert plain.kept == dict.fromkeys(("0", "1"), "has hooks, which a plain layer would lose")
    assert calls == []
    model(torch.randn(2, 4))
    assert calls == ["after", "before", "plain"]


def test_a_weight_that_a_hook_of_its_own_computes_becomes_plain():
    """The only hook before the call computes the weight, as for equalised learning rates; it goes with the weight."""
    layer = nn.Linear(4, 4)
    layer.original = layer.weight
    del layer.weight
    layer.weight = layer.original.detach()
    layer.register_forward_pre_hook(lambda module, _: setattr(module, "weight", module.original * 0.5))
    x = torch.randn(2, 4)
    expected = layer(x)
    plain = pp.plain_weights(nn.Sequential(layer), inplace=True)
    assert plain.layers == ("0",)
    torch.testing.assert_close(plain.model(x), expected)


class Generated(nn.Linear):
    """A layer whose weight a layer within it computes."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.inner = Computing(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.inner.weight.sum(), self.bias)


def test_a_layer_within_a_replaced_layer_goes_with_it():
    """The inner layer is no longer a part of the network."""
    plain = pp.plain_weights(nn.Sequential(Generated()))
    assert plain.layers == ("0",)
    assert type(plain.model[0]) is nn.Linear


def test_a_parametrised_bias_stays_trained():
    """A computed bias becomes a parameter that is trained like the weight."""
    model = nn.Sequential(weight_norm(weight_norm(nn.Linear(4, 4)), "bias", dim=None))
    plain = pp.plain_weights(model).model
    assert plain[0].bias.requires_grad
    torch.testing.assert_close(plain[0].bias, model[0].bias)
