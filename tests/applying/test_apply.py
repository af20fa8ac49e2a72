"""Applying a plan: the copy, the verification, and the original that stays as it is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from zoo import NETWORKS, measured_macs, run, to_tensors

import proxyprune as pp
from proxyprune import Surgery
from proxyprune.applying.apply import predict
from proxyprune.errors import PlanMismatchError, VerificationError
from proxyprune.surgery.find_surgery import find_surgery
from proxyprune.surgery.perform import perform


def plan_for(model: nn.Module, inputs: object, target: float = 0.6, *, probe: bool = True) -> tuple[pp.ModelGraph, pp.PrunePlan]:
    """Return a magnitude plan."""
    graph = pp.trace(model, inputs, probe=probe)  # type: ignore[arg-type]
    return graph, pp.make_plan(graph, pp.score(graph, "magnitude", model=model), target, model=model)


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["ddpm_unet", "llama_gqa", "hf_resnet"])
def test_the_original_is_untouched_and_the_copy_shares_nothing(name: str) -> None:
    """Weights, shapes and attributes of the caller's model are as before, and no tensor of the copy is one of its own."""
    network = NETWORKS[name]
    model, inputs = network.build(), network.inputs()
    before, output = state(model), to_tensors(run(model, inputs))
    _, plan = plan_for(model, inputs)
    pruned = pp.apply_plan(model, plan, inputs)
    assert type(pruned) is type(model)
    after = state(model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(a, b) for a, b in zip(output, to_tensors(run(model, inputs)), strict=True))
    mine = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    assert not mine & {tensor.data_ptr() for tensor in pruned.state_dict().values() if tensor.numel()}


def test_in_place_gives_the_same_network_in_the_same_object() -> None:
    """`inplace=True` cuts the model itself, and to the same weights as the copy."""
    network = NETWORKS["ddpm_unet"]
    model, inputs = network.build(), network.inputs()
    _, plan = plan_for(model, inputs)
    expected = pp.apply_plan(model, plan, inputs).state_dict()
    result = pp.apply_plan(model, plan, inputs, inplace=True)
    assert result is model
    assert {key: value.shape for key, value in model.state_dict().items()} == {key: value.shape for key, value in expected.items()}
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


class FailsOnData(nn.Module):
    """Runs while it is traced; raises once a switch is thrown, as code that looks at values may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed and not x.is_meta:
            raise ValueError("cannot run on this")
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_failing_run_leaves_the_model_as_it_was(inplace: bool) -> None:
    """When the pruned model raises on the real inputs, the error says so and the caller's model is whole."""
    model, inputs = FailsOnData(), torch.randn(1, 8)
    graph, plan = plan_for(model, inputs)
    before = state(model)
    model.armed = True
    with pytest.raises(VerificationError, match="cannot run on this"):
        pp.apply_plan(model, plan, inputs, inplace=inplace, graph=graph)
    assert model.first.out_features == 16
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_constant_in_forward_is_found_before_anything_is_cut() -> None:
    """Without probing, the plan cuts the heads; applying it says which group, op and module are at odds, and prune pins and goes on."""
    network = NETWORKS["constant_heads"]
    model, inputs = network.build(), network.inputs()
    graph, plan = plan_for(model, inputs, probe=False)
    with pytest.raises(VerificationError, match="unflatten") as caught:
        pp.apply_plan(model, plan, inputs, graph=graph)
    assert caught.value.module.endswith("mixer")
    assert any("qkv" in group for group in caught.value.groups)
    result = pp.prune(model, inputs, 0.6)
    assert any("qkv" in group for group in result.report.pinned)


def test_a_plan_for_another_network_is_refused() -> None:
    """The fingerprint binds a plan to a structure, not to weights."""
    first, second = NETWORKS["hf_resnet"], NETWORKS["plain_cnn"]
    _, plan = plan_for(first.build(), first.inputs())
    with pytest.raises(PlanMismatchError):
        pp.apply_plan(second.build(), plan, second.inputs())
    other_weights = first.build()
    with torch.no_grad():
        for parameter in other_weights.parameters():
            parameter.add_(0.01)
    assert pp.apply_plan(other_weights, plan, first.inputs()) is not other_weights


def test_surgery_for_another_size_changes_nothing() -> None:
    """A cut that does not fit the parameter is refused before the first slice."""
    network = NETWORKS["plain_cnn"]
    model, inputs = network.build(), network.inputs()
    surgery = pp.prune(model, inputs, 0.6).surgery
    wrong = replace(surgery, cuts=(*surgery.cuts[:-1], replace(surgery.cuts[-1], size=surgery.cuts[-1].size + 1)))
    before = state(model)
    with pytest.raises(PlanMismatchError, match="The plan cuts dimension"):
        perform(model, wrong)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_surgery_record_of_the_first_release_is_read() -> None:
    """The JSON keys of saved surgeries are fixed, whatever the classes are called."""
    record = {
        "schema": 1,
        "cuts": [{"parameter": "up.weight", "dim": 0, "size": 8, "kept": "0-3,5"}],
        "attributes": [{"module": "attn", "path": ["config", "heads"], "before": 8, "after": 4}],
        "bypassed": [{"module": "blocks.1", "arguments": [0, "mask"], "template": {"tuple": [{"hole": 0}, {"hole": 1}]}}],
    }
    surgery = Surgery.from_dict(record)
    assert surgery.removed_blocks[0].arguments == (0, "mask")
    assert surgery.to_dict() == record


def test_surgery_survives_json() -> None:
    """Slices, attributes and bypasses come back as they were written."""
    network = NETWORKS["sd_unet"]
    surgery = pp.prune(network.build(), network.inputs(), 0.6, mode="both").surgery
    assert surgery.removed_blocks
    assert Surgery.from_dict(surgery.to_dict()) == surgery


def test_frozen_parameters_and_gradients_follow() -> None:
    """requires_grad, gradients, dtype and training mode of every parameter are carried over."""
    network = NETWORKS["plain_cnn"]
    model, inputs = network.build().double().train(), tuple(value.double() for value in network.inputs())
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    model(*inputs).sum().backward()
    pruned = pp.prune(model, inputs, 0.6).model
    name = next(name for name, parameter in model.named_parameters() if parameter is first)
    kept = dict(pruned.named_parameters())
    assert not kept[name].requires_grad
    assert all(p.dtype == torch.float64 and (p.grad is None or p.grad.shape == p.shape) for p in pruned.parameters())
    assert any(p.grad is not None for p in pruned.parameters())
    assert pruned.training


def test_tied_weights_stay_tied() -> None:
    """An output layer that shares the embedding's weight still does after the cut."""
    network = NETWORKS["tied_language_model"]
    model = network.build()
    pruned = pp.prune(model, network.inputs(), 0.6).model
    shared = [name for name, p in model.named_parameters(remove_duplicate=False) if name not in dict(model.named_parameters())]
    assert shared
    parameters = dict(pruned.named_parameters(remove_duplicate=False))
    assert len({id(p) for p in parameters.values()}) == len(parameters) - len(shared)


def test_a_removed_block_hands_its_stream_on() -> None:
    """The pruned network computes what the original computes when each removed block returns its residual input."""
    network = NETWORKS["bert"]
    model, inputs = network.build(), network.inputs()
    result = pp.prune(model, inputs, 0.8, "random", mode="depth", seed=3)
    assert {entry.module for entry in result.surgery.removed_blocks} == set(result.plan.removed_blocks) != set()
    reference = copy.deepcopy(model)
    for entry in result.surgery.removed_blocks:
        (argument,) = entry.arguments

        def hand_on(module: nn.Module, args: tuple, kwargs: dict, output: object, key: int | str = argument) -> object:
            stream = args[key] if isinstance(key, int) else kwargs[key]
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        reference.get_submodule(entry.module).register_forward_hook(hand_on, with_kwargs=True)
    for expected, found in zip(to_tensors(run(reference, inputs)), to_tensors(run(result.model, inputs)), strict=True):
        torch.testing.assert_close(found, expected)


def test_verification_sees_a_wrong_attribute() -> None:
    """With nothing cut the forward agrees with the trace; a head count changed behind its back is a difference."""
    network = NETWORKS["ddpm_unet"]
    model, inputs = network.build(), network.inputs()
    graph = pp.trace(model, inputs)
    unpruned = predict(graph, pp.make_plan(graph, pp.score(graph, "random"), 0.9)).unpruned
    assert find_surgery(model, unpruned, inputs).difference is None
    attention = next(module for module in model.modules() if hasattr(module, "heads"))
    attention.heads = 2 if attention.heads == 1 else 1
    found = find_surgery(model, unpruned, inputs)
    assert found.difference is not None or found.surgery.attributes


def test_a_plan_made_before_a_flag_was_toggled_names_the_flag() -> None:
    """`config.output_hidden_states` adds outputs, and with them pins; the message says so, and the flag stays as the caller set it."""
    network = NETWORKS["llama_gqa"]
    model, inputs = network.build(), network.inputs()
    model.config.output_hidden_states = False
    _, plan = plan_for(model, inputs)
    model.config.output_hidden_states = True
    with pytest.raises(PlanMismatchError, match=r"config\.output_hidden_states = False, and it is True now\. Use the same setting"):
        pp.apply_plan(model, plan, inputs)
    assert model.config.output_hidden_states is True


def test_a_plan_is_valid_with_and_without_a_cache() -> None:
    """A cache is no tensor that the network returns, so `config.use_cache` changes no group, and the plan is applied either way."""
    network = NETWORKS["llama_gqa"]
    model, inputs = network.build(), network.inputs()
    model.config.use_cache = False
    _, plan = plan_for(model, inputs)
    model.config.use_cache = True
    pruned = pp.apply_plan(model, plan, inputs)
    assert measured_macs(pruned, inputs) == plan.macs
