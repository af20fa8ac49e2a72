"""Mixtures of experts as transformers 5 runs them: every product is counted, and the hidden width of experts is cut."""

from __future__ import annotations

import pytest
import torch
from masking import assert_equals_masking, randomise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import proxyprune as pp

TOKENS, WIDTH, HIDDEN, EXPERTS, PICKED = 6, 32, 64, 4, 2
INPUTS = {"input_ids": torch.arange(TOKENS)[None], "use_cache": False}


def mixtral(implementation: str) -> nn.Module:
    """Two layers of Mixtral; the experts run as `implementation` says."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=PICKED,
    )
    config._experts_implementation = implementation
    return randomise(transformers.MixtralForCausalLM(config).eval())


def grouped_flops(data, weight, *args, out_shape=None, **kwargs):
    """Every row meets the matrix of one expert."""
    return 2 * data[0] * data[1] * weight[2]


def counted(model: nn.Module) -> int:
    """MACs that torch counts when it knows what a grouped product costs."""
    formulas = {torch.ops.aten._grouped_mm: grouped_flops, torch.ops.transformers.grouped_mm_fallback: grouped_flops}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model(**INPUTS)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_experts_are_counted(implementation):
    """The cost of a layer's experts is tokens x picked experts x (2 + 1) x width x hidden, whatever op multiplies."""
    graph = pp.trace(mixtral(implementation), INPUTS, probe=False)
    assert not graph.unsupported_ops
    assert not graph.uncosted_ops
    experts = 2 * TOKENS * PICKED * 3 * WIDTH * HIDDEN
    others = 2 * TOKENS * (WIDTH * WIDTH * 2 + WIDTH * WIDTH // 2 * 2 + WIDTH * EXPERTS) + TOKENS * WIDTH * 64
    attention = 2 * 2 * TOKENS * TOKENS * WIDTH
    assert graph.macs == experts + others + attention


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_experts_are_cut(implementation):
    """0.6 of a Mixtral is 0.6: hidden widths of experts and the stream shrink, and the result equals masking."""
    model = mixtral(implementation)
    result = pp.prune(model, INPUTS, 0.6)
    assert 0.5 * result.graph.macs < result.plan.macs <= 0.6 * result.graph.macs
    cut = {cut.parameter.rpartition(".")[2] for cut in result.surgery.cuts if ".experts." in cut.parameter}
    assert cut == {"gate_up_proj", "down_proj"}
    assert counted(result.model) == result.plan.macs
    assert counted(model) == result.graph.macs
    for network in (model, result.model):  # the kernel of grouped products does not take double precision
        network.config._experts_implementation = "batched_mm"
        for module in network.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = "batched_mm"
    assert_equals_masking(model, result.model, result.graph, result.plan, INPUTS)


def test_grouped_products_stay_aligned():
    """The kernel of grouped products takes multiples of 16 bytes; widths shrink in steps that half precision allows, too."""
    graph = pp.trace(mixtral("grouped_mm"), INPUTS, probe=False)
    units = {group.id: group.unit for group in graph.prunable if ".experts." in group.id}
    assert units
    assert all(unit // 2 % 8 == 0 for unit in units.values()), "gate and up projection stand one after another in the first member"


class Lookup(nn.Module):
    """A layer whose matrix is picked from a stack by number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.stack = nn.Parameter(torch.randn(3, 16, 24))
        self.last = nn.Linear(24, 4)

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        return self.last(torch.bmm(self.first(x), self.stack[which]))


def test_a_matrix_that_is_picked_by_number_is_a_weight():
    """Both dimensions of a picked matrix can be cut, exactly; the number of matrices stays."""
    model, inputs = Lookup().eval(), (torch.randn(2, 5, 8), torch.tensor([2, 0]))
    result = pp.prune(model, inputs, 0.6)
    dims = {cut.dim for cut in result.surgery.cuts if cut.parameter == "stack"}
    assert dims == {1, 2}
    assert_equals_masking(model, result.model, result.graph, result.plan, inputs)


class Written(nn.Module):
    """Rows are written back to where they came from."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        hidden = self.first(x)
        back = torch.empty_like(hidden)
        back[order] = hidden
        return self.last(torch.zeros_like(hidden).index_put((order,), hidden, accumulate=True) + back)


def test_rows_written_by_number_keep_their_channels():
    """index_put pins the rows that it writes; channels go on and can be cut."""
    model, inputs = Written().eval(), (torch.randn(5, 8), torch.randperm(5))
    result = pp.prune(model, inputs, 0.6)
    assert not result.graph.unsupported_ops
    assert [cut.parameter for cut in result.surgery.cuts] == ["first.weight", "first.bias", "last.weight"]
    assert_equals_masking(model, result.model, result.graph, result.plan, inputs)


def test_the_branch_that_runs_is_counted():
    """A gated delta net solves a triangular system, and multiplies instead where it is exported: the plan counts the run."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3NextConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        moe_intermediate_size=HIDDEN,
        shared_expert_intermediate_size=HIDDEN,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=EXPERTS,
        num_experts_per_tok=PICKED,
    )
    model = randomise(transformers.Qwen3NextForCausalLM(config).eval())
    graph = pp.trace(model, INPUTS | {"use_cache": True}, probe=False)
    assert not graph.uncosted_ops
    assert counted(model) == graph.macs


class ForbiddenSize:
    """A configuration that raises when a size is read from the whole, and stores it all the same."""

    def __init__(self) -> None:
        self.hidden, self.heads = 16, 4

    def __getattribute__(self, name: str):
        if name == "hidden":
            raise LookupError("'hidden' varies across layers")
        return object.__getattribute__(self, name)


class Configured(nn.Module):
    """Keeps such a configuration, and reads one size of it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ForbiddenSize()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).unflatten(-1, (self.config.heads, -1))
        return self.last((heads * heads.softmax(-1)).flatten(-2))


def test_an_attribute_that_may_not_be_read_does_not_stop_pruning():
    """Sizes are looked up where they are stored, so that no code of the caller's configuration raises through."""
    model, inputs = Configured().eval(), (torch.randn(2, 8),)
    result = pp.prune(model, inputs, 0.8)
    assert result.model(*inputs).shape == (2, 4)
    assert result.plan.macs < result.graph.macs
