"""Axis labels: what is equated leaves together, what meets something fixed stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from proxyprune.coupling.axes import FIXED, Axis, AxisLabels, LabelArray


def of(axis: Axis) -> LabelArray:
    """Return the labels of an axis that has some."""
    assert axis is not None
    return axis


def test_fresh_labels_are_new_on_every_axis() -> None:
    """No label is given twice, and none is the fixed one."""
    labels = AxisLabels()
    first, second = of(labels.fresh(3)), of(labels.fresh(4))
    together = np.concatenate([first, second])
    assert len(set(together.tolist())) == 7
    assert FIXED not in together


@pytest.mark.parametrize("size", [0, 1])
def test_a_dimension_of_one_position_is_fixed(size: int) -> None:
    """There is nothing to cut, and broadcasting may stretch it."""
    assert AxisLabels().fresh(size) is None


def test_unrelated_positions_are_classes_of_their_own() -> None:
    """Without relations every position is free and leaves alone."""
    labels = AxisLabels()
    axis = of(labels.fresh(5))
    resolved = labels.solve().resolve(axis)
    assert len(set(resolved.tolist())) == 5
    assert (resolved >= 0).all()


def test_equated_axes_leave_pairwise_together() -> None:
    """Position k of one axis is in the class of position k of the other, and in no other."""
    labels = AxisLabels()
    first, second = of(labels.fresh(4)), of(labels.fresh(4))
    labels.equate(first, second, "here")
    classes = labels.solve()
    assert (classes.resolve(first) == classes.resolve(second)).all()
    assert len(set(classes.resolve(first).tolist())) == 4


def test_meeting_a_fixed_dimension_pins_the_whole_axis() -> None:
    """The reason says where it happened."""
    labels = AxisLabels()
    axis = of(labels.fresh(3))
    labels.equate(axis, None, "aten.add in head")
    classes = labels.solve()
    assert (classes.resolve(axis) == -1).all()
    assert set(classes.reasons.values()) == {"meets a fixed dimension in aten.add in head"}


def test_a_pin_reaches_everything_equated_with_it() -> None:
    """Three axes in a row: the last one is pinned, so all are."""
    labels = AxisLabels()
    axes = [of(labels.fresh(3)) for _ in range(3)]
    labels.equate(axes[0], axes[1], "a")
    labels.equate(axes[1], axes[2], "b")
    labels.pin(axes[2], "is an output")
    classes = labels.solve()
    assert all((classes.resolve(axis) == -1).all() for axis in axes)


def test_only_positions_that_meet_fixed_ones_are_pinned() -> None:
    """A padded axis beside an unpadded one: the positions beside the padding stay, the others are free."""
    labels = AxisLabels()
    inner, outer = of(labels.fresh(3)), of(labels.fresh(5))
    labels.equate(np.concatenate([[FIXED], inner, [FIXED]]), outer, "pad")
    classes = labels.solve()
    assert (classes.resolve(outer)[[0, 4]] == -1).all()
    assert (classes.resolve(outer)[1:4] == classes.resolve(inner)).all()
    assert (classes.resolve(inner) >= 0).all()


def test_axes_of_unequal_length_are_pinned_both() -> None:
    """A relation that cannot be read pairwise is never guessed."""
    labels = AxisLabels()
    first, second = of(labels.fresh(4)), of(labels.fresh(2))
    labels.equate(first, second, "here")
    classes = labels.solve()
    assert (classes.resolve(first) == -1).all()
    assert (classes.resolve(second) == -1).all()


def test_the_first_reason_is_kept() -> None:
    """Later pins of a class say nothing new."""
    labels = AxisLabels()
    axis = of(labels.fresh(2))
    labels.pin(axis, "first")
    labels.pin(axis, "second")
    assert set(labels.solve().reasons.values()) == {"first"}


def test_unify_returns_a_labelled_axis_and_ties_all() -> None:
    """The one that stands for several is labelled when any of them is."""
    labels = AxisLabels()
    axes = [labels.fresh(3) for _ in range(3)]
    chosen = of(labels.unify([*axes], "here"))
    classes = labels.solve()
    assert all((classes.resolve(of(axis)) == classes.resolve(chosen)).all() for axis in axes)


def test_unify_with_one_fixed_axis_pins_the_others() -> None:
    """A sum of a cut and an uncut tensor has no size."""
    labels = AxisLabels()
    axis = of(labels.fresh(3))
    labels.unify([None, axis, None], "here")
    assert (labels.solve().resolve(axis) == -1).all()


def test_unify_of_fixed_axes_is_fixed() -> None:
    """Nothing labelled goes in, nothing labelled comes out."""
    assert AxisLabels().unify([None, None], "here") is None


def test_tied_runs_leave_the_same_offset_from_every_run() -> None:
    """Six positions in two runs are three classes: 0 with 3, 1 with 4, 2 with 5."""
    labels = AxisLabels()
    axis = of(labels.fresh(6))
    first = labels.tie_runs(axis, 2, "chunk")
    resolved = labels.solve().resolve(axis)
    assert resolved[:3].tolist() == resolved[3:].tolist()
    assert len(set(resolved.tolist())) == 3
    assert first.tolist() == axis[:3].tolist()


def test_tied_within_runs_leave_a_run_at_a_time() -> None:
    """Six positions in two runs are two classes of three neighbours."""
    labels = AxisLabels()
    axis = of(labels.fresh(6))
    heads = labels.tie_within_runs(axis, 2, "heads")
    resolved = labels.solve().resolve(axis)
    assert [len(set(resolved[k : k + 3].tolist())) for k in (0, 3)] == [1, 1]
    assert resolved[0] != resolved[3]
    assert heads.tolist() == axis[[0, 3]].tolist()


def test_an_axis_may_shrink_until_it_is_pinned_as_a_whole() -> None:
    """Fixed axes never may; pins of single positions leave the answer open."""
    labels = AxisLabels()
    axis = labels.fresh(4)
    assert not labels.may_shrink(None)
    assert labels.may_shrink(axis)
    labels.pin(of(axis)[:1], "is read at a fixed position")
    assert labels.may_shrink(axis)
    labels.pin(axis, "is an output")
    assert not labels.may_shrink(axis)


def test_the_fixed_label_is_pinned_without_a_reason() -> None:
    """Padding never leaves, and is reported as nothing."""
    labels = AxisLabels()
    labels.fresh(3)
    classes = labels.solve()
    assert classes.resolve(np.array([FIXED])).tolist() == [-1]
    assert classes.reasons == {}


RELATIONS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.permutations(range(4))), max_size=8)


@given(RELATIONS, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=2))
def test_classes_are_what_a_naive_closure_says(relations: list[tuple[int, int, list[int]]], pins: list[tuple[int, int]]) -> None:
    """Random pairwise relations between four axes, against merging sets by hand."""
    labels = AxisLabels()
    axes = [of(labels.fresh(4)) for _ in range(4)]
    sets = {int(label): {int(label)} for axis in axes for label in axis}
    for first, second, order in relations:
        labels.equate(axes[first], axes[second][order], "here")
        for one, other in zip(axes[first].tolist(), axes[second][order].tolist(), strict=True):
            merged = sets[one] | sets[other]
            sets.update(dict.fromkeys(merged, merged))
    pinned = set()
    for axis, position in pins:
        labels.pin(axes[axis][[position]], "stays")
        pinned |= sets[int(axes[axis][position])]
    resolved = {label: found for axis in axes for label, found in zip(axis.tolist(), labels.solve().resolve(axis).tolist(), strict=True)}
    for one in resolved:
        assert (resolved[one] == -1) == (one in pinned)
        for other in resolved:
            if one not in pinned and other not in pinned:
                assert (resolved[one] == resolved[other]) == (other in sets[one])
