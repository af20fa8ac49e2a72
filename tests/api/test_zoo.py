"""The promises of the package on every network of the zoo: it runs, it is exact, it cuts what it says, it counts everything, it repeats."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import thop
import torch
from masking import assert_close, assert_equals_masking, randomise
from torch import Tensor, nn
from traced import Traced, traced
from zoo import NETWORKS, Inputs, measured_macs, names, run, to_tensors

import proxyprune as pp
from proxyprune.applying.apply import apply
from proxyprune.errors import TargetError
from proxyprune.result import make_report

TARGETS = (0.8, 0.6, 0.4)
SCORERS = ("magnitude", "random")
DEPTH_TARGETS = (0.8, 0.6)

UNREACHABLE: dict[tuple[str, float], str] = {}
"""(network, target) that no narrowing reaches -> why. Such a pair must raise TargetError, any other one must not."""

_SKIPS = "concatenations need most blocks of the down and up path as they are"
_STAGES = "the first block of each stage changes width or resolution, and one of two goes at most"
_OUTSIDE = "the addition sits in the caller's forward, so no block can be replaced by the identity"

UNREACHABLE_BY_DEPTH: dict[tuple[str, float], str] = {
    ("ddpm_unet", 0.6): _SKIPS,
    ("ddpm_unet_one_head", 0.6): _SKIPS,
    ("ncsnpp_unet", 0.6): _SKIPS,
    ("class_conditional_unet", 0.6): _SKIPS,
    ("adm_unet", 0.6): _SKIPS,
    ("linear_attention_unet", 0.6): _SKIPS,
    ("hf_resnet", 0.6): _STAGES,
    ("segformer", 0.6): "patch embeddings and the decoder are more than half of the network",
    ("flux", 0.6): "one block of three can go: the single-stream ones join and part two streams inside",
    ("c2f", 0.8): _OUTSIDE,
    ("c2f", 0.6): _OUTSIDE,
    ("shared_block", 0.8): _OUTSIDE,
    ("shared_block", 0.6): _OUTSIDE,
    ("pixel_shuffle", 0.8): _OUTSIDE,
    ("pixel_shuffle", 0.6): _OUTSIDE,
}
"""The same for removing whole blocks."""

COARSE = {"manual_group_norm": "its handwritten norms take whole groups from both convolutions"}
"""Networks in which a plan may miss the target by more than 1 % of the base, because no step of theirs is small enough."""

UNSUPPORTED: dict[str, tuple[str, ...]] = {}
"""Networks with ops that have no rule; FlopCounterMode does not count these either."""

THOP_DIFFERS = {
    "transposed_autoencoder": "thop bills every output of a transposed convolution with a full kernel, stride ** 2 times too much",
    "conv1d": "the same, with stride 2",
}

COUNTED_BY_THOP = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def build_randomised(name: str) -> nn.Module:
    return randomise(NETWORKS[name].build())


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """Everything that surgery could change: tensors, module types and their plain attributes."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}
    plain = (bool, int, float, str, tuple, list, type(None))
    attributes = [
        (name, type(module), {key: copy.copy(value) for key, value in vars(module).items() if isinstance(value, plain)})
        for name, module in model.named_modules()
    ]
    return tensors, attributes


def assert_untouched(model: nn.Module, before: tuple[dict[str, Tensor], list[Any]]) -> None:
    tensors, attributes = snapshot(model)
    assert attributes == before[1], "an attribute of the caller's model changed"
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensors[name], value) for name, value in before[0].items()), "a weight of the caller's model changed"


def assert_valid(graph: Any, plan: Any) -> None:
    """Kept atoms exist, leave in whole steps, keep the floor and stay level over the bins."""
    for group_id, kept in plan.kept.items():
        group = graph.by_id[group_id]
        assert group.pinned is None
        assert list(kept) == sorted(set(kept))
        assert set(kept) <= set(range(group.atoms))
        assert (group.atoms - len(kept)) % group.step == 0
        assert len(kept) >= group.floor
        if group.bins is not None:
            assert len({sum(group.bins[atom] == bin_ for atom in kept) for bin_ in set(group.bins)}) == 1


def assert_meets_budget(graph: Any, plan: Any, name: str) -> None:
    """Never above the target; less than 1 % of the base below it, or provably as close as single steps get, and said so."""
    assert plan.macs <= plan.target_macs
    gap = plan.target_macs - plan.macs
    if gap < 0.01 * plan.base_macs:
        return
    assert name in COARSE, f"the plan stays {gap / plan.base_macs:.1%} of the base below the target"
    assert plan.notes, "the plan does not say that it misses the target"
    atoms = plan.atoms(graph)
    for index, group in enumerate(graph.prunable):
        if atoms[index] < group.atoms:
            wider = atoms.copy()
            wider[index] += group.step
            assert graph.cost.macs(wider) > plan.target_macs, f"one more step of group '{group.id}' would still fit the budget"


def assert_same_output(expected: nn.Module, found: nn.Module, inputs: Inputs) -> None:
    for a, b in zip(to_tensors(run(expected, inputs)), to_tensors(run(found, inputs)), strict=True):
        assert torch.equal(a, b)


def cases(targets: tuple[float, ...], scorers: tuple[str, ...], **selection: Any) -> list[Any]:
    """(network, target, scorer), networks together."""
    return [
        pytest.param(name, target, scorer, id=f"{name}-{target}-{scorer}")
        for name in names(**selection)
        for target in targets
        for scorer in scorers
    ]


def prune_with(case: Traced, target: float, scorer: str) -> pp.PruneResult:
    """Return what `pp.prune` does, on a graph that is at hand."""
    ranking = pp.score(case.graph, scorer, model=case.model)
    plan = pp.make_plan(case.graph, ranking, target, model=case.model, accept_uncosted=case.name in UNSUPPORTED)
    applied = apply(case.model, plan, case.inputs, graph=case.graph)
    return pp.PruneResult(applied.model, plan, ranking, make_report(case.graph, plan), applied.surgery, case.graph)


def check(case: Traced, result: pp.PruneResult, folder: Path) -> None:
    """Promises 1 to 3 for one pruned network, and a save that brings it back."""
    plan = result.plan
    assert_valid(result.graph, plan)
    assert_meets_budget(result.graph, plan, case.name)
    assert type(result.model) is type(case.model)
    assert plan.base_macs == case.graph.macs
    assert plan.macs == measured_macs(result.model, case.inputs)
    assert plan.params == sum(parameter.numel() for parameter in result.model.parameters())
    shapes = [tuple(tensor.shape) for tensor in to_tensors(run(case.model, case.inputs))]
    assert [tuple(tensor.shape) for tensor in to_tensors(run(result.model, case.inputs))] == shapes
    assert_equals_masking(case.model, result.model, result.graph, plan, case.inputs)
    pp.save(result, folder / "saved")
    assert_same_output(result.model, pp.load(folder / "saved", NETWORKS[case.name].build), case.inputs)


@pytest.mark.parametrize(("name", "target", "scorer"), cases(TARGETS, SCORERS))
def test_pruned_network_runs_is_exact_equals_masking_and_loads(name: str, target: float, scorer: str, tmp_path: Path) -> None:
    """The pruned network runs, costs what was planned, computes what the masked original does, and survives a save."""
    case = traced(name)
    before = snapshot(case.model)
    if (name, target) in UNREACHABLE:
        with pytest.raises(TargetError, match="best reachable") as caught:
            prune_with(case, target, scorer)
        best = float(re.search(r"([01]\.\d+) of the base", str(caught.value))[1])
        assert target < best < 1
    else:
        check(case, prune_with(case, target, scorer), tmp_path)
    assert_untouched(case.model, before)


@pytest.mark.parametrize("name", names())
def test_one_call_keeps_the_promises_and_its_plan_replays(name: str, tmp_path: Path) -> None:
    """`pp.prune` does it all on a bare model, and `pp.apply_plan` does the same again from its plan as a file."""
    case = traced(name)
    before = snapshot(case.model)
    result = pp.prune(case.model, case.inputs, 0.6, accept_uncosted=name in UNSUPPORTED)
    check(case, result, tmp_path)
    result.plan.to_json(tmp_path / "plan.json")
    again = pp.apply_plan(case.model, pp.PrunePlan.from_json(tmp_path / "plan.json"), case.inputs)
    assert_same_output(result.model, again, case.inputs)
    assert_untouched(case.model, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(having="large", lacking=None))
def test_large_network_too(name: str, tmp_path: Path) -> None:
    """The same at full size."""
    network = NETWORKS[name]
    model, inputs = build_randomised(name), network.inputs()
    result = pp.prune(model, inputs, 0.6, accept_uncosted=name in UNSUPPORTED)
    assert result.graph.macs == measured_macs(model, inputs)
    check(Traced(name, model, inputs, result.graph), result, tmp_path)


@pytest.mark.parametrize("name", names())
def test_counted_macs_equal_measured_macs(name: str) -> None:
    """The closed form counts what FlopCounterMode measures, attention included; what lacks a rule or a cost is what the table says."""
    case = traced(name)
    assert case.graph.macs == measured_macs(case.model, case.inputs)
    assert case.graph.params == sum(parameter.numel() for parameter in case.model.parameters())
    assert case.graph.cost.macs(case.graph.cost.full) == case.graph.macs
    assert case.graph.unsupported_ops == UNSUPPORTED.get(name, ())
    assert set(case.graph.uncosted_ops) <= set(UNSUPPORTED.get(name, ()))


class ByKeyword(nn.Module):
    """Takes positional arguments, which is all that thop hands on, and names them."""

    def __init__(self, model: nn.Module, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.keywords = keywords

    def forward(self, *values: Any) -> Any:
        return self.model(**dict(zip(self.keywords, values, strict=True)))


def thop_macs(model: nn.Module, inputs: Inputs) -> int:
    """Return what thop counts in convolutions and linear layers; its element counts for norms, pools and activations are switched off."""
    others = {type(m) for m in model.modules() if not list(m.children()) and not isinstance(m, COUNTED_BY_THOP)}
    callee = ByKeyword(copy.deepcopy(model), tuple(inputs)) if isinstance(inputs, dict) else copy.deepcopy(model)
    positional = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    macs, _ = thop.profile(callee, positional, custom_ops=dict.fromkeys(others, lambda *_: None), verbose=False)
    return int(macs)


@pytest.mark.parametrize("name", names(having="conv_or_linear_only"))
def test_counted_macs_equal_thop_without_functional_attention(name: str) -> None:
    """The literature's counter agrees wherever every product sits in a module that it knows, transposed convolutions aside."""
    case = traced(name)
    counted = thop_macs(case.model, case.inputs)
    if name in THOP_DIFFERS:
        assert counted > case.graph.macs
    else:
        assert counted == case.graph.macs


@pytest.mark.parametrize("name", names(having="functional_attention"))
def test_thop_misses_functional_attention(name: str) -> None:
    """The literature's counter finds less where activations are multiplied with each other, so a report must show both."""
    case = traced(name)
    assert thop_macs(case.model, case.inputs) < case.graph.macs


# ----------------------------------------------------------------------------------------------------------------- masking


@pytest.mark.parametrize("name", ["ddpm_unet", "llama_gqa", "c2f", "relative_bias"])
def test_masking_check_notices_a_wrong_channel(name: str) -> None:
    """The comparison behind promise 3 is sharp: a plan that names one other atom in one group does not pass for the one applied."""
    case = traced(name)
    plan = pp.make_plan(case.graph, pp.score(case.graph, "random"), 0.8, model=case.model)
    small = pp.apply_plan(case.model, plan, case.inputs, graph=case.graph)
    assert_equals_masking(case.model, small, case.graph, plan, case.inputs)
    for group_id, kept in list(plan.kept.items())[:6]:
        group = case.graph.by_id[group_id]
        gone = sorted(set(range(group.atoms)) - set(kept))
        wrong = SimpleNamespace(kept={**plan.kept, group_id: tuple(sorted({*kept[1:], gone[0]}))})
        with pytest.raises(AssertionError):
            assert_equals_masking(case.model, small, case.graph, wrong, case.inputs)


# ----------------------------------------------------------------------------------------------------------------- pinning


def test_recurrent_layer_is_cut_like_the_rest() -> None:
    """Inputs and hidden units of the LSTM belong to groups that shrink, and so does the linear layer behind it."""
    graph = traced("lstm").graph
    assert not [group.id for group in graph.groups if group.pinned and any(m.parameter.startswith("lstm.") for m in group.members)]
    cut = {(member.parameter, member.dim) for group in graph.prunable for member in group.members}
    assert {("lstm.weight_ih_l0", 1), ("lstm.weight_hh_l1_reverse", 1), ("hidden.weight", 0), ("hidden.weight", 1)} <= cut


def test_inputs_and_outputs_of_the_model_are_pinned() -> None:
    """The caller's interface does not shrink."""
    graph = traced("plain_cnn").graph
    pinned = {tuple(member) for group in graph.groups if group.pinned for member in group.members}
    assert {("0.0.weight", 1), ("8.weight", 0), ("8.bias", 0)} <= pinned


@pytest.mark.parametrize("name", ["manual_group_norm", "conv1d"])
def test_whole_norm_groups_leave_real_statistics_equal(name: str) -> None:
    """When whole norm groups leave, masking and pruning agree with nothing held: each group's statistics are its own."""
    case = traced(name)
    graph = pp.trace(case.model, case.inputs, norm_groups="whole")
    ranking = pp.score(graph, "magnitude", model=case.model)
    plan = pp.make_plan(graph, ranking, 0.6, model=case.model)
    small = pp.apply_plan(case.model, plan, case.inputs, graph=graph)
    assert_equals_masking(case.model, small, graph, plan, case.inputs, hold=False)


# ------------------------------------------------------------------------------------------------------------------- depth


def bypass(model: nn.Module, blocks: tuple[str, ...]) -> nn.Module:
    """Return a copy in which each of the blocks hands on its argument of the output's shape."""
    model = copy.deepcopy(model)
    for name in blocks:
        model.get_submodule(name).register_forward_hook(_hand_on, with_kwargs=True)
    return model


def _hand_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Replace each tensor of the output by the argument that it stems from: of those with its shape, the one most similar to it."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]

    def source(tensor: Tensor) -> Tensor:
        alike = [value for value in given if value.shape == tensor.shape]
        return max(alike, key=lambda value: float(torch.cosine_similarity(value.flatten(), tensor.flatten(), dim=0)))

    if isinstance(output, Tensor):
        return source(output)
    return type(output)(source(value) if isinstance(value, Tensor) else value for value in output)


@pytest.mark.parametrize(("name", "target", "scorer"), cases(DEPTH_TARGETS, ("magnitude",), having="residual"))
def test_removing_blocks_runs_is_exact_and_equals_bypassing(name: str, target: float, scorer: str) -> None:
    """Without some residual blocks the network runs, costs what was planned, and computes what the original does around them."""
    case = traced(name)
    before = snapshot(case.model)
    ranking = pp.score(case.graph, scorer, model=case.model)
    if (name, target) in UNREACHABLE_BY_DEPTH:
        with pytest.raises(TargetError, match="best reachable"):
            pp.make_plan(case.graph, ranking, target, mode="depth", model=case.model, accept_uncosted=name in UNSUPPORTED)
        return
    plan = pp.make_plan(case.graph, ranking, target, mode="depth", model=case.model, accept_uncosted=name in UNSUPPORTED)
    assert plan.removed_blocks
    assert not plan.kept
    assert plan.macs <= plan.target_macs
    small = pp.apply_plan(case.model, plan, case.inputs, graph=case.graph)
    assert_untouched(case.model, before)
    assert plan.macs == measured_macs(small, case.inputs)
    assert plan.params == sum(parameter.numel() for parameter in small.parameters())
    expected = to_tensors(run(bypass(case.model, plan.removed_blocks), case.inputs))
    found = to_tensors(run(small, case.inputs))
    assert_close(expected, found, "bypassed and pruned outputs")


@pytest.mark.parametrize("name", names(having="residual"))
def test_residual_network_has_removable_blocks(name: str) -> None:
    """Every network tagged residual offers a block to remove, but for those whose reason in the table says that none can go."""
    none = {name for (name, _), reason in UNREACHABLE_BY_DEPTH.items() if reason == _OUTSIDE}
    assert any(block.removable for block in traced(name).graph.blocks) == (name not in none)


# -------------------------------------------------------------------------------------------------------------- repeating


REPEATED = ("ddpm_unet", "swin", "llama_gqa", "c2f", "linear_attention_unet")
SCRIPT = "import json, sys; from test_zoo import REPEATED, written; json.dump({name: written(name) for name in REPEATED}, sys.stdout)"


def written(name: str) -> list[list[str]]:
    """Return everything about a network that is written down, for two scorers."""
    model, inputs = build_randomised(name), NETWORKS[name].inputs()
    graph, found = pp.trace(model, inputs), []
    for scorer in SCORERS:
        ranking = pp.score(graph, scorer, model=model, seed=3)
        plan = pp.make_plan(graph, ranking, 0.6, model=model)
        found.append([graph.to_text(), json.dumps(ranking.to_dict()), plan.to_text(), graph.fingerprint])
    return found


@pytest.mark.slow
def test_fresh_processes_repeat_text_ranking_and_plan_byte_for_byte() -> None:
    """A process with another hash seed writes the same text graph, ranking, plan and fingerprint as this one."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent), str(root / "tests" / "shared"), os.environ.get("PYTHONPATH", "")])
    seed = "0" if os.environ.get("PYTHONHASHSEED") != "0" else "4711"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        here = {name: written(name) for name in REPEATED}
        found, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    there = json.loads(found)
    assert there.keys() == here.keys()
    for name, values in here.items():
        assert values == there[name], name


# --------------------------------------------------------------------------------------------------------- the zoo itself


@pytest.mark.parametrize("name", names())
def test_network_builds_the_same_every_time(name: str) -> None:
    """Weights and inputs are seeded, and building leaves the caller's random state alone."""
    network = NETWORKS[name]
    state = torch.get_rng_state()
    model, inputs = network.build(), network.inputs()
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    first, second = to_tensors(run(model, inputs)), to_tensors(run(network.build(), network.inputs()))
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_network_has_at_most_one_counting_tag() -> None:
    """A network multiplies activations, or has all products in convolution and linear modules, never both."""
    assert not [n for n in NETWORKS.values() if {"functional_attention", "conv_or_linear_only"} <= n.tags]
    assert all(n.note for n in NETWORKS.values())
