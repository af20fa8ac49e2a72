"""Tracing: what it accepts, what it refuses, and what it finds out by probing."""

from __future__ import annotations

import random

import pytest
import torch
from drawn import ImageAttention, random_plan
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from zoo import NETWORKS, FusedQkvAttention

import proxyprune as pp
from proxyprune.errors import ExampleInputsError, InputError, TraceError, VerificationError


class DataDependent(nn.Module):
    """Branches on the value of a tensor, which no trace without values can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(x)
        return y if float(y.sum()) > 0 else -y


def test_a_model_that_does_not_trace_is_named() -> None:
    """The error says which module the trace failed in, and why."""
    model = nn.Sequential(nn.Linear(4, 4), DataDependent())
    with pytest.raises(TraceError, match=r"module '1' \(DataDependent\)"):
        pp.trace(model.to("meta"), torch.randn(1, 4))


def test_wrong_example_inputs_are_told_from_a_failing_trace() -> None:
    """When the model itself raises on the inputs, the error shows module, reason and what was given."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ExampleInputsError, match=r"module '0' \(Linear\).*float32\[1, 5\]"):
        pp.trace(model, torch.randn(1, 5))


def test_missing_arguments_are_wrong_inputs_too() -> None:
    """A forward that wants more arguments than were given is reported with what was given."""
    with pytest.raises(ExampleInputsError, match="positional argument"):
        pp.trace(NETWORKS["ddpm_unet"].build(), torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("inputs", [3, "x", {1: torch.zeros(1)}])
def test_example_inputs_of_another_kind_are_refused(inputs: object) -> None:
    """Only a tensor, a tuple or list, or a mapping with names will do."""
    with pytest.raises(InputError, match="example_inputs"):
        pp.trace(nn.Linear(4, 4), inputs)  # type: ignore[arg-type]


def test_something_that_is_no_module_is_refused() -> None:
    """A function is no model."""
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        pp.trace(lambda x: x, torch.zeros(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "value"), [("norm_groups", "some"), ("conv_groups", "none")])
def test_an_unknown_option_lists_the_known_ones(option: str, value: str) -> None:
    """A typo in an option does not pass."""
    with pytest.raises(InputError, match="balanced, whole"):
        pp.trace(nn.Linear(4, 4), torch.zeros(1, 4), **{option: value})


def test_tracing_leaves_mode_and_weights_alone() -> None:
    """A model in training mode is traced in eval mode and comes back in training mode, submodule by submodule."""
    model = NETWORKS["ddpm_unet"].build().train()
    model.conv_in.eval()
    before = {name: (module.training, module) for name, module in model.named_modules()}
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    pp.trace(model, NETWORKS["ddpm_unet"].inputs())
    assert {name: (module.training, module) for name, module in model.named_modules()} == before
    assert {name: parameter._version for name, parameter in model.named_parameters()} == versions


def test_a_model_without_weights_has_the_same_graph() -> None:
    """On the meta device and under FakeTensorMode, text, groups and fingerprint are those of the real model."""
    network = NETWORKS["ddpm_unet"]
    real = pp.trace(network.build(), network.inputs())
    with torch.device("meta"):
        meta = pp.trace(network.build(), network.inputs())
    with FakeTensorMode():
        fake_model = network.build()
    fake = pp.trace(fake_model, network.inputs())
    assert real.to_text() == meta.to_text() == fake.to_text()
    assert real.fingerprint == meta.fingerprint == fake.fingerprint


def test_a_constant_head_count_is_pinned_with_its_reason() -> None:
    """A forward that says `unflatten(-1, (4, -1))` runs with fewer channels and is wrong; probing finds it and pins the heads."""
    network = NETWORKS["constant_heads"]
    graph = pp.trace(network.build(), network.inputs())
    reasons = {group.id: group.pinned for group in graph.groups if "qkv" in group.id}
    assert reasons
    assert all(reason and "unflatten" in reason for reason in reasons.values())


def test_a_width_that_only_an_assertion_reads_follows() -> None:
    """`assert x.shape[1] == self.channels` does not show in the graph; the attribute follows the cut all the same."""
    network = NETWORKS["asserted_width"]
    model = network.build()
    result = pp.prune(model, network.inputs(), 0.6)
    changed = {change.path[-1] for change in result.surgery.attributes}
    assert "channels" in changed
    assert result.plan.macs < result.plan.base_macs


def test_a_width_that_two_tensors_must_share_is_tied() -> None:
    """Where a head dimension is computed as the stream's width over the number of heads, the two shrink together."""
    network = NETWORKS["fused_qkv_vit"]
    graph = pp.trace(network.build(), network.inputs())
    tied = {key for pair in graph.amendments.ties for key in pair}
    assert any("qkv.weight:1" in key for key in tied)
    (stream,) = [group for group in graph.prunable if "patch.weight:0" in [f"{m.parameter}:{m.dim}" for m in group.members]]
    assert stream.unit > 1


def test_widths_that_one_forward_divides_are_told_apart_though_both_lose_the_same_share() -> None:
    """A head's dimension is the stream over the heads: right when both lose a quarter, and when both lose all but one of four."""
    attention = ImageAttention(24, FusedQkvAttention(24, 4))
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), attention, nn.Conv2d(24, 3, 1)).eval()
    inputs = torch.randn(1, 3, 8, 8)
    free = pp.trace(model, inputs, norm_groups="whole", probe=False)
    with pytest.raises(VerificationError):
        pp.apply_plan(model, random_plan(free, random.Random(2)), inputs, graph=free)
    graph = pp.trace(model, inputs, norm_groups="whole")
    assert graph.prunable
    for seed in range(8):
        pp.apply_plan(model, random_plan(graph, random.Random(seed)), inputs, graph=graph)


def test_an_op_without_a_rule_is_reported_and_pins() -> None:
    """What goes into an unknown op stays, and the op is named."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.trapezoid(self.first(x)).expand(1, 8))

    graph = pp.trace(Odd(), torch.randn(1, 4))
    assert "aten.trapezoid" in graph.unsupported_ops
    (group,) = [group for group in graph.groups if group.id == "first.weight:0"]
    assert group.pinned is not None
    assert "trapezoid" in group.pinned


class EqualParts(nn.Module):
    """Attention whose forward splits parts of equal size, each stated by its own attribute, and uses that size as a constant too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.key_heads, self.value_heads, self.joint = 32, 4, 4, 96
        self.key_width, self.value_width, self.head_width = 32, 32, 8
        self.q, self.k, self.v, self.out = nn.Linear(20, 32), nn.Linear(20, 32), nn.Linear(20, 32), nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        joint = torch.cat([self.q(x), self.k(x), self.v(x)], -1)
        joint = nn.functional.pad(joint, (0, 0, 0, 32 - joint.shape[1])).view(joint.shape[0], 32, -1)[:, : x.shape[1]]
        parts = torch.split(joint, [self.key_width, self.key_width, self.value_width], -1)
        q, k, v = (part.reshape(*part.shape[:2], -1, self.head_width).transpose(1, 2) for part in parts)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attributes_that_one_op_takes_together_follow_together() -> None:
    """No single change of an attribute helps a split into equal parts; all attributes of that size are changed at once."""
    model = nn.Sequential(nn.Linear(6, 20), EqualParts(), nn.Linear(20, 3)).eval()
    graph = pp.trace(model, torch.randn(1, 5, 6))
    assert "1.q.weight:0" in {group.id for group in graph.prunable}
    attention = pp.prune(model, torch.randn(1, 5, 6), 0.6, ceilings={"1.q.weight:0": 16}).model[1]
    assert attention.key_width == attention.value_width == attention.q.out_features == 16
    assert (attention.head_width, attention.hidden) == (8, 32)
