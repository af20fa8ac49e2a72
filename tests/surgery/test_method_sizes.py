"""Attributes that only other methods use as sizes follow a cut on evidence, and inner ranks of adapters stay whole unless asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masking import randomise
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError
from proxyprune.surgery.method_sizes import sizes_in_methods


class Reparameterised(nn.Module):
    """A 3 x 3 branch, a 1 x 1 branch and the identity, which `fuse` adds up into one convolution, as RepVGG does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.limit = channels
        self.wide, self.narrow = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches."""
        return (self.wide(x) + self.narrow(x) + x).relu()

    def fuse(self) -> nn.Conv2d:
        """Return one convolution that does the same, before the activation."""
        width = self.channels
        identity = torch.zeros(width, width, 3, 3)
        for index in range(self.channels):
            identity[index, index, 1, 1] = 1
        fused = nn.Conv2d(self.channels, self.channels, 3, padding=1)
        with torch.no_grad():
            fused.weight.copy_(self.wide.weight + nn.functional.pad(self.narrow.weight, (1, 1, 1, 1)) + identity)
            fused.bias.copy_(self.wide.bias + self.narrow.bias)
        return fused


class TwoWidths(nn.Module):
    """Two widths that are equal before the cut and not after it; nothing shows which one `size` states."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 16
        self.first, self.second, self.third = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply three layers."""
        return self.third(self.second(self.first(x).relu()).relu())

    def blank(self) -> Tensor:
        """Return a tensor of some width."""
        return torch.zeros(1, self.size)


class Stack(nn.Module):
    """A stem, a block and a head."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 16, 3, padding=1), block, nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them."""
        return self.head(self.block(self.stem(x)))


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_block_is_fused_after_the_cut() -> None:
    """`channels` follows, because `fuse` makes tensors of that size; the fused convolution computes what the pruned block does."""
    model = randomise(Stack(Reparameterised(16))).eval()
    result = pp.prune(model, X, 0.5)
    block = result.model.block
    assert block.channels == block.wide.in_channels < 16
    hidden = result.model.stem(X)
    torch.testing.assert_close(block.fuse()(hidden).relu(), block(hidden), rtol=1e-4, atol=1e-4)
    assert model.block.channels == 16


class Widening(nn.Module):
    """Two branches from one width to another, which `fuse` adds up; the first width is the size of no result inside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.wide, self.narrow = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches."""
        return self.wide(x) + self.narrow(x)

    def fuse(self) -> nn.Conv2d:
        """Return one convolution that does the same."""
        fused = nn.Conv2d(self.inputs, self.outputs, 3, padding=1)
        with torch.no_grad():
            fused.weight.copy_(self.wide.weight + nn.functional.pad(self.narrow.weight, (1, 1, 1, 1)))
            fused.bias.copy_(self.wide.bias + self.narrow.bias)
        return fused


def test_a_width_that_a_block_only_reads_follows() -> None:
    """`inputs` follows as well as `outputs`, so the block is fused after the cut."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Widening(16, 24), nn.ReLU(), nn.Conv2d(24, 4, 1))
    result = pp.prune(randomise(model).eval(), X, 0.5)
    block = result.model[2]
    assert block.inputs == block.wide.in_channels < 16
    assert block.outputs == block.wide.out_channels < 24
    hidden = result.model[:2](X)
    torch.testing.assert_close(block.fuse()(hidden), block(hidden), rtol=1e-4, atol=1e-4)


def test_an_attribute_without_evidence_is_listed() -> None:
    """`limit` equals the width too, and no method uses it: it stays and is listed, where `channels` is not."""
    result = pp.prune(randomise(Stack(Reparameterised(16))).eval(), X, 0.5)
    assert result.model.block.limit == 16
    assert "block.limit" in result.report.not_followed
    assert "block.channels" not in result.report.not_followed


def test_ambiguous_evidence_is_listed() -> None:
    """Of two widths that were equal and differ now, none is chosen."""
    model = randomise(Stack(TwoWidths())).eval()
    result = pp.prune(model, X, 0.6, ceilings={"block.first.weight:0": 11, "block.second.weight:0": 7})
    assert result.model.block.size == 16
    assert "block.size" in result.report.not_followed


def test_the_source_of_a_method_is_the_evidence() -> None:
    """Sizes of tensors, ranges and layers count, through names and arithmetic; the constructor and forward do not."""
    assert sizes_in_methods(Reparameterised) == {"channels"}
    assert sizes_in_methods(TwoWidths) == {"size"}
    assert sizes_in_methods(nn.Conv2d) == frozenset()


class LowRank(nn.Module):
    """A linear layer with a low-rank pair of layers beside it, as LoRA adds."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.r, self.scaling = base, rank, 2.0
        self.lora_A, self.lora_B = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the pair's result."""
        return self.base(x) + self.lora_B(self.lora_A(self.dropout(x))) * self.scaling


class NamedAdapters(nn.Module):
    """The same in peft's form: dicts by the adapter's name."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.r, self.scaling = base, {"default": rank}, {"default": 2.0}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        """Add the result of every adapter."""
        result = self.base(x)
        for name in self.lora_A:
            result = result + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return result


class Matrices(nn.Module):
    """The same as plain parameters, as loralib has it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.r = base, rank
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Add the product."""
        return self.base(x) + (x @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * 0.5


class Merged(Matrices):
    """The same, added to the weight before the product."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the sum of both weights."""
        return nn.functional.linear(x, self.base.weight + (self.lora_B @ self.lora_A) * 0.5, self.base.bias)


KINDS: dict[str, type[Any]] = {"layers": LowRank, "named": NamedAdapters, "matrices": Matrices, "merged": Merged}


class Adapted(nn.Module):
    """Two adapted layers around an activation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = KINDS[kind](nn.Linear(24, 48), 8), KINDS[kind](nn.Linear(48, 24), 8)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.second(self.first(x).relu())


def ranks(model: nn.Module) -> set[int]:
    """Return the inner ranks of both adapters."""
    found = set()
    for layer in (model.first, model.second):
        for name, tensor in layer.named_parameters():
            if "lora_A" in name:
                found.add(tensor.shape[0])
            elif "lora_B" in name:
                found.add(tensor.shape[1])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_inner_ranks_of_adapters_stay_whole(kind: str) -> None:
    """Hidden widths are cut through base and adapter, the inner ranks and `r` stay, and the reason names the option."""
    model = randomise(Adapted(kind)).eval()
    result = pp.prune(model, torch.randn(1, 24), 0.7)
    assert ranks(result.model) == {8}
    assert result.model.first.base.out_features < 48
    assert result.model.first.r == model.first.r
    if kind != "merged":
        reasons = [group.pinned or "" for group in result.graph.groups if "lora" in group.id]
        assert any("adapter_ranks" in reason for reason in reasons)


@pytest.mark.parametrize("kind", ["layers", "named", "matrices"])
def test_ranks_that_are_cut_on_request_are_stated(kind: str, tmp_path: Any) -> None:
    """With adapter_ranks='cut' the ranks shrink and `r` follows each, also when the plan is applied anew and after loading."""
    inputs, model = torch.randn(1, 24), randomise(Adapted(kind)).eval()
    result = pp.prune(model, inputs, 0.5, adapter_ranks="cut")
    again = pp.apply_plan(model, result.plan, inputs)
    loaded = pp.load(pp.save(result, tmp_path / "small"), lambda: Adapted(kind))
    assert min(ranks(result.model)) < 8
    for small in (result.model, again, loaded):
        for layer in (small.first, small.second):
            stated = layer.r["default"] if isinstance(layer.r, dict) else layer.r
            shape = next(tensor.shape for name, tensor in layer.named_parameters() if "lora_A" in name)
            assert stated == shape[0]
    assert model.first.r in (8, {"default": 8})


def test_a_bottleneck_is_no_adapter() -> None:
    """With an activation between its products, or without a layer beside it, a pair is cut as before."""

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.down, self.up = nn.Linear(24, 24), nn.Linear(24, 8), nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x).relu())

    model = randomise(nn.Sequential(Bottleneck())).eval()
    assert "0.down.weight:0" in {group.id for group in pp.trace(model, torch.randn(1, 24)).prunable}


def test_unknown_choices_are_named() -> None:
    """Another value of the option is an error that lists the known ones."""
    with pytest.raises(InputError, match="adapter_ranks must be one of keep, cut; found 'whole'"):
        pp.trace(Adapted("layers").eval(), torch.randn(1, 24), adapter_ranks="whole")
