"""Predicted time: exact at measured widths, between its neighbours elsewhere, and never falling with a width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from proxyprune.graph.time_cost import Curve, OpUse, Side, Surface, TimeCost, rising


def surface(first: list[int], second: list[int], times: list[list[float]]) -> Surface:
    """Build a surface without penalties."""
    return Surface(Side.of(first, {}, 1), Side.of(second, {}, 1), rising(np.array(times, np.float64)))


def cost(*uses: OpUse, overhead: float = 0.0, groups: int = 1) -> TimeCost:
    """Build the time of a network of these ops, all in one block."""
    return TimeCost(uses, overhead, {"a": 2, "b": 1}, 1.0, {}, {}, (), groups)


def test_a_surface_is_exact_at_measured_widths_and_linear_between():
    """Four corners give the mean of their values in the middle."""
    found = surface([16, 32], [16, 48], [[10, 20], [30, 60]])
    assert found.at(np.array([16, 32]), np.array([48, 48])).tolist() == [20.0, 60.0]
    assert found.at(np.array([24]), np.array([32])).tolist() == [30.0]


@given(st.lists(st.lists(st.floats(0, 1e9), min_size=4, max_size=4), min_size=3, max_size=3))
def test_rising_values_never_fall_along_any_axis(values: list[list[float]]):
    """Whatever was measured, a wider layer is never cheaper."""
    found = rising(np.array(values))
    assert (np.diff(found, axis=0) >= 0).all()
    assert (np.diff(found, axis=1) >= 0).all()


def test_values_that_rise_already_stay():
    """Monotone measurements are not changed."""
    values = np.array([[1.0, 2.0], [2.0, 5.0]])
    assert rising(values).tolist() == values.tolist()


@given(st.sampled_from([1, 8, 16]), st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(1, 3)))
def test_effective_widths_never_fall_and_stay_below_the_next_tile(tile: int, penalties: dict[int, float]):
    """A width off the tile counts as at least itself and at most the next width on the tile."""
    side = Side.of([16, 32, 64, 100], penalties, tile)
    widths = np.arange(len(side.effective))
    assert (np.diff(side.effective) >= 0).all()
    assert (side.effective >= widths).all()
    assert (side.effective <= np.minimum(-(-widths // tile) * tile, 100)).all()


def test_a_penalty_makes_an_odd_width_as_dear_as_the_next_tile():
    """At a penalty of a half, 33 channels count as 48."""
    assert Side.of([16, 96], {1: 1.5}, 16).effective[[32, 33, 48]].tolist() == [32.0, 48.0, 48.0]


def test_times_are_whole_nanoseconds_and_blocks_leave_with_their_calls():
    """The total is the sum of rounded ops and of the calls that are left."""
    first = OpUse("conv in a", "a", surface([0, 100], [10], [[0], [1000]]), sizes=((0, ((0, 1),)), (10, ())))
    second = OpUse("relu in b", "b", Curve(np.array([0.0, 100.0]), np.array([0.0, 50.0])), work=((2, ((0, ((0, 1),)),)),))
    found = cost(first, second, overhead=7.0)
    assert found.by_use(np.array([[40], [100]])).tolist() == [[400, 40], [1000, 50]]
    assert found.total(np.array([40])) == 400 + 40 + 3 * 7
    assert found.total(np.array([40]), {"a"}) == 40 + 7
    assert found.totals(np.array([[40], [100]])).tolist() == [461, 1071]
    assert found.by_block(np.array([40])) == {"a": 414, "b": 47}


@pytest.mark.parametrize("width", [0, 5])
def test_widths_below_the_narrowest_measured_cost_as_much(width: int):
    """Below the first point nothing is gained."""
    assert surface([10, 20], [10], [[7], [9]]).at(np.array([width]), np.array([10])).tolist() == [7.0]
