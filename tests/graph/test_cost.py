"""Cost: exact sums of products of sizes, against direct evaluation and against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor, nn
from zoo import measured_macs

import proxyprune as pp
from proxyprune.graph.polynomial import LinearForm, Polynomial, Summand

GROUPS = 3
FORMS = st.tuples(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, GROUPS - 1), st.integers(1, 4)), max_size=3, unique_by=lambda pair: pair[0]).map(tuple),
)
SUMMANDS = st.lists(
    st.tuples(st.integers(0, 9), st.lists(FORMS, max_size=4).map(tuple), st.sampled_from(["", "a", "b"])), min_size=1, max_size=8
)
COUNTS = st.lists(st.integers(0, 40), min_size=GROUPS, max_size=GROUPS)


def size(form: LinearForm, counts: list[int]) -> int:
    constant, coefficients = form
    return constant + sum(coefficient * counts[group] for group, coefficient in coefficients)


def value(summand: Summand, counts: list[int]) -> int:
    constant, forms, _ = summand
    for form in forms:
        constant *= size(form, counts)
    return constant


@given(SUMMANDS, COUNTS)
def test_a_polynomial_is_the_sum_of_its_summands(summands: list[Summand], counts: list[int]) -> None:
    """Against products and sums of Python integers."""
    polynomial = Polynomial.build(summands, GROUPS)
    assert int(polynomial.terms(np.array(counts)).sum()) == sum(value(summand, counts) for summand in summands)


@given(SUMMANDS, st.lists(COUNTS, min_size=1, max_size=5))
def test_many_plans_at_once_cost_what_each_costs_alone(summands: list[Summand], plans: list[list[int]]) -> None:
    """A row of the batch is the single evaluation."""
    polynomial = Polynomial.build(summands, GROUPS)
    batch = polynomial.terms(np.array(plans))
    assert batch.shape[0] == len(plans)
    for row, plan in zip(batch, plans, strict=True):
        assert row.tolist() == polynomial.terms(np.array(plan)).tolist()


@given(SUMMANDS, COUNTS)
def test_terms_keep_their_blocks(summands: list[Summand], counts: list[int]) -> None:
    """Summed by block, the terms are the summands of that block."""
    polynomial = Polynomial.build(summands, GROUPS)
    terms = polynomial.terms(np.array(counts))
    for block in ("", "a", "b"):
        found = sum(int(term) for term, own in zip(terms, polynomial.blocks, strict=True) if own == block)
        assert found == sum(value(summand, counts) for summand in summands if summand[2] == block)


def test_equal_products_in_one_block_are_one_term() -> None:
    """3xy + 4yx is 7xy; the same product in another block stays apart."""
    x, y = (0, ((0, 1),)), (0, ((1, 1),))
    polynomial = Polynomial.build([(3, (x, y), "a"), (4, (y, x), "a"), (5, (x, y), "b")], 2)
    assert sorted(zip(polynomial.blocks, polynomial.constants.tolist(), strict=True)) == [("a", 7), ("b", 5)]


def test_no_terms_cost_nothing() -> None:
    """A network without products has 0 MACs for every plan."""
    polynomial = Polynomial.build([], 2)
    assert polynomial.terms(np.array([3, 4])).sum() == 0
    assert polynomial.terms(np.array([[3, 4], [1, 1]])).sum(axis=-1).tolist() == [0, 0]


def test_costs_beyond_32_bits_are_exact() -> None:
    """A big network has 10 ** 12 MACs and more."""
    wide = (0, ((0, 1),))
    assert int(Polynomial.build([(10**6, (wide, wide), "")], 1).terms(np.array([10**6 - 1])).sum()) == 10**6 * (10**6 - 1) ** 2


# ------------------------------------------------------------------------------------------------------------ closed forms


def cost_of(model: nn.Module, inputs: Any) -> Any:
    """Return the cost model; its base is checked against the reference counter."""
    graph = pp.trace(model.eval(), inputs, probe=False)
    assert graph.macs == measured_macs(model, inputs if isinstance(inputs, tuple) else (inputs,))
    assert graph.params == sum(parameter.numel() for parameter in model.parameters())
    return graph.cost


@pytest.mark.parametrize("hidden", [1, 5, 16])
def test_two_linear_layers(hidden: int) -> None:
    """Batch 3, length 7: 21 * (8 h + 4 h) MACs, 8 h + h + 4 h + 4 parameters."""
    cost = cost_of(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.zeros(3, 7, 8))
    assert cost.macs(np.array([hidden])) == 21 * 12 * hidden
    assert cost.params(np.array([hidden])) == 13 * hidden + 4


@pytest.mark.parametrize("hidden", [1, 6, 16])
def test_two_convolutions_with_a_batch(hidden: int) -> None:
    """Batch 2, 16 x 16, kernel 3, then kernel 1 with stride 2: 2 * (256 * 9 * 3 + 64 * 4) MACs a channel."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1, stride=2))
    cost = cost_of(model, torch.zeros(2, 3, 16, 16))
    assert cost.macs(np.array([hidden])) == 2 * (256 * 27 + 64 * 4) * hidden
    assert cost.params(np.array([hidden])) == (27 + 1 + 2 + 4) * hidden + 4


@pytest.mark.parametrize("hidden", [2, 16])
def test_a_depthwise_convolution_is_linear_in_its_width(hidden: int) -> None:
    """9 MACs for each channel and position, and 1 x 1 convolutions on both sides."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 4, 1))
    cost = cost_of(model, torch.zeros(2, 3, 8, 8))
    assert cost.macs(np.array([hidden])) == 2 * 64 * (3 + 9 + 4) * hidden


@pytest.mark.parametrize(("first", "second"), [(4, 4), (1, 3), (2, 1)])
def test_a_grouped_convolution_keeps_its_groups(first: int, second: int) -> None:
    """4 groups: 9 * (in / 4) * out MACs a position; an atom is one channel in each group."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 5, 1))
    cost = cost_of(model, torch.zeros(1, 3, 8, 8))
    wide, narrow = 4 * first, 4 * second
    assert cost.macs(np.array([first, second])) == 64 * (3 * wide + 9 * first * narrow + 5 * narrow)


@pytest.mark.parametrize("hidden", [3, 16])
def test_a_transposed_convolution_is_paid_by_its_input(hidden: int) -> None:
    """Kernel 4, stride 2, on 8 x 8: 16 products for each position of the input, not of the output."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 4, 4, 2, 1))
    cost = cost_of(model, torch.zeros(2, 3, 8, 8))
    assert cost.macs(np.array([hidden])) == 2 * 64 * (3 + 16 * 4) * hidden


class Attention(nn.Module):
    """4 heads of 8, on a width of 24."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 96)
        self.out = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_attention_pays_for_both_of_its_products(heads: int) -> None:
    """Batch 2, length 10: two products of 10 * 10 * 8 a head, beside the four projections."""
    cost = cost_of(Attention(), torch.zeros(2, 10, 24))
    projections = 2 * 10 * 24 * 8 * (3 + 1) * heads
    assert cost.macs(np.array([heads])) == projections + 2 * 2 * 10 * 10 * 8 * heads
    assert cost.conventional_macs(np.array([heads])) == projections
    assert cost.params(np.array([heads])) == 8 * (24 * 3 + 3 + 24) * heads + 24


class Denoiser(nn.Module):
    """The skeleton of a DDPM U-Net: stem, a residual block that reads the time, a shorter way at half resolution, head."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 16))
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 24, 3, padding=1)
        self.shift = nn.Linear(16, 24)
        self.second = nn.Conv2d(24, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 20, 3, stride=2, padding=1)
        self.up = nn.Conv2d(20, 16, 3, padding=1)
        self.head = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        x = self.stem(x)
        x = x + self.second(F.silu(self.first(x) + self.shift(time)[:, :, None, None]))
        low = F.interpolate(F.silu(self.down(x)), scale_factor=2.0)
        return self.head(torch.cat([x, self.up(low)], dim=1))


def denoiser_macs(embedding: int, time: int, stream: int, inner: int, low: int, up: int) -> int:
    """MACs of one image of 16 x 16 by the widths."""
    dense = 8 * embedding + embedding * time + time * inner
    full = 3 * stream + 2 * stream * inner + low * up + (stream + up) * 3
    return dense + 9 * (256 * full + 64 * stream * low)


def test_a_denoiser_costs_what_its_closed_form_says() -> None:
    """All six widths on their own, and together; two images cost twice as much."""
    inputs = (torch.zeros(2, 3, 16, 16), torch.zeros(2, 8))
    graph = pp.trace(Denoiser(), inputs, probe=False)
    owners = ("time.0.weight", "time.2.weight", "stem.weight", "first.weight", "down.weight", "up.weight")
    order = [next(k for k, group in enumerate(graph.prunable) if (owner, 0) in map(tuple, group.members)) for owner in owners]
    assert sorted(order) == list(range(len(graph.prunable)))
    full = [32, 16, 16, 24, 20, 16]
    narrowed = [[*full[:k], width, *full[k + 1 :]] for k in range(6) for width in (1, full[k] // 2)]
    plans = [full, [3, 5, 7, 9, 11, 13], [1] * 6, *narrowed]
    atoms = np.zeros((len(plans), 6), np.int64)
    atoms[:, order] = plans
    expected = [2 * denoiser_macs(*plan) for plan in plans]
    assert graph.cost.macs_batch(atoms).tolist() == expected
    assert [graph.cost.macs(row) for row in atoms] == expected


def test_blocks_share_out_the_whole_cost() -> None:
    """The costs of the blocks, and of what lies in none, add up; a removed block costs nothing and nothing else changes."""
    body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    graph = pp.trace(nn.Sequential(nn.Linear(8, 16), Residual(), nn.Linear(16, 4)), torch.zeros(1, 8), probe=False)
    atoms = graph.cost.full - 1
    macs, params = graph.cost.block_macs(atoms), graph.cost.block_params(atoms)
    assert sum(macs.values()) == graph.cost.macs(atoms)
    assert sum(params.values()) == graph.cost.params(atoms)
    removed = next(block.id for block in graph.blocks if block.removable)
    assert graph.cost.macs(atoms, [removed]) == graph.cost.macs(atoms) - macs[removed]
    assert graph.cost.params(atoms, [removed]) == graph.cost.params(atoms) - params[removed]
    assert graph.cost.block_macs(atoms, [removed]) == {**macs, removed: 0}
