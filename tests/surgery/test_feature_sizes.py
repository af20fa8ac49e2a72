"""Networks that state sizes of their features, in the attributes of timm: the sizes and the record of weights stay true after a cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from results import Residual
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import ConfigError


class Classifier(nn.Module):
    """A network with the attributes and methods of timm's: a head with a layer of its own, so that two sizes differ."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList([Residual(16), Residual(16)])
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.conv_head = nn.Linear(32, 48)
        self.classifier = nn.Linear(48, 10)
        self.num_classes = 10
        self.num_features = 32
        self.head_hidden_size = 48
        self.feature_info = [
            {"num_chs": 16, "reduction": 1, "module": "blocks.1"},
            {"num_chs": 32, "reduction": 2, "module": "down"},
        ]
        self.pretrained_cfg: dict[str, Any] = {
            "architecture": "classifier_small",
            "url": "https://example.org/weights.pth",
            "hf_hub_id": "timm/",
            "num_classes": 10,
            "input_size": (3, 8, 8),
            "first_conv": "conv_stem",
            "classifier": "classifier",
        }
        self.default_cfg = self.pretrained_cfg

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features before pooling."""
        x = self.conv_stem(x)
        for block in self.blocks:
            x = block(x)
        return self.down(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, and classify."""
        x = self.conv_head(x.mean((2, 3))).relu()
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes."""
        return self.forward_head(self.forward_features(x))


class Wrapper(nn.Module):
    """A network that holds another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Classifier()

    def forward(self, x: Tensor) -> Tensor:
        """Run the network inside."""
        return self.inner(x)


INPUTS = torch.randn(2, 3, 8, 8)


def sizes(network: Any) -> tuple[int, int, list[int]]:
    """Return the sizes that a network states."""
    return network.num_features, network.head_hidden_size, [entry["num_chs"] for entry in network.feature_info]


def true_sizes(network: Any) -> tuple[int, int, list[int]]:
    """Return the sizes that its layers have."""
    channels = [network.blocks[1].conv2.out_channels, network.down.out_channels]
    return network.down.out_channels, network.classifier.in_features, channels


@pytest.mark.parametrize("kind", [Classifier, Wrapper])
@pytest.mark.parametrize("inplace", [False, True])
def test_stated_sizes_follow(kind: type[nn.Module], inplace: bool) -> None:
    """Each stated size is that of the pruned layers; the unpruned network keeps its own, unless it is changed in place."""
    model = kind().eval()
    unpruned = copy.deepcopy(model)
    graph = pp.trace(model, INPUTS)
    plan = pp.make_plan(graph, pp.score(graph, "magnitude", model=model), 0.4)
    pruned = pp.apply_plan(model, plan, INPUTS, inplace=inplace, graph=graph)
    network = pruned.inner if kind is Wrapper else pruned
    assert sizes(network) == true_sizes(network)
    before = unpruned.inner if kind is Wrapper else unpruned
    assert network.num_features < before.num_features
    assert network.head_hidden_size < before.head_hidden_size
    assert network.feature_info[0]["num_chs"] < 16
    if not inplace:
        kept = model.inner if kind is Wrapper else model
        assert sizes(kept) == sizes(before)
        assert kept.pretrained_cfg == before.pretrained_cfg


def test_they_stay_in_depth_cuts_and_follow_on_loading(tmp_path: Path) -> None:
    """Depth cuts keep the sizes; a saved network states its sizes after loading."""
    model = Classifier().eval()
    depth = pp.prune(model, INPUTS, 0.7, mode="depth")
    assert depth.plan.removed_blocks
    assert sizes(depth.model) == sizes(model)
    width = pp.prune(model, INPUTS, 0.4)
    pp.save(width, tmp_path / "small")
    loaded: Any = pp.load(tmp_path / "small", Classifier)
    assert sizes(loaded) == true_sizes(loaded) == sizes(width.model) != sizes(model)
    assert loaded.pretrained_cfg == width.model.pretrained_cfg
    assert not {"num_features", "head_hidden_size"} & width.report.not_followed.keys()


def test_the_record_of_weights_names_nothing_else() -> None:
    """Architecture and sources of the unpruned weights leave; classes, inputs and names of layers stay, and still are right."""
    model = Classifier().eval()
    pruned: Any = pp.prune(model, INPUTS, 0.4).model
    record = pruned.pretrained_cfg
    assert record == pruned.default_cfg
    assert record["architecture"] == "classifier_small (pruned)"
    assert not {"url", "hf_hub_id"} & record.keys()
    assert record["num_classes"] == pruned.num_classes == pruned(INPUTS).shape[1]
    assert record["input_size"][0] == pruned.get_submodule(record["first_conv"]).in_channels
    assert pruned.get_submodule(record["classifier"]).out_features == record["num_classes"]
    again: Any = pp.prune(pruned, INPUTS, 0.8).model
    assert again.pretrained_cfg["architecture"] == "classifier_small (pruned)"
    assert sizes(again) == true_sizes(again)


class Broken(Classifier):
    """A network whose head cannot be run without its classifier."""

    def forward_head(self, x: Tensor, **given: Any) -> Tensor:
        """Pool, and classify."""
        if given:
            raise TypeError("no pre_logits here")
        return super().forward_head(x)


def test_sizes_that_cannot_be_found_are_reported() -> None:
    """If the method that a size describes raises, the size stays and the report says why; the others follow."""
    result = pp.prune(Broken().eval(), INPUTS, 0.4)
    model: Any = result.model
    assert model.num_features == model.down.out_channels
    assert model.head_hidden_size == 48
    assert "no pre_logits here" in result.report.not_followed["head_hidden_size"]


def test_a_plain_folder_is_rejected_with_the_reason(tmp_path: Path) -> None:
    """timm builds a network from the name of its architecture, so save_pretrained raises and writes nothing."""
    result = pp.prune(Classifier().eval(), INPUTS, 0.4, uniform=True)
    with pytest.raises(ConfigError, match=r"classifier_small.*name of its architecture.*proxyprune\.save"):
        pp.save_pretrained(result, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
