"""Checks of single values, strict JSON, and names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from proxyprune.support.checks import is_count, is_number, listed
from proxyprune.support.strict_json import loads
from proxyprune.tracing.names import is_inside, named_state


@pytest.mark.parametrize("value", [0, 1, -3, 0.5, -1e308, 10**300])
def test_numbers(value):
    """Finite ints and floats are numbers."""
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, None, "1", math.nan, math.inf, -math.inf, 10**400, 1j])
def test_no_numbers(value):
    """Flags, text, NaN, infinities and integers beyond every float are no numbers."""
    assert not is_number(value)


def test_numbers_in_a_range():
    """Both ends belong to the range."""
    assert [is_number(value, 0.0, 1.0) for value in (-1e-9, 0, 0.5, 1, 1.0 + 1e-9)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("value", "least", "fits"), [(0, 0, True), (0, 1, False), (1, 1, True), (True, 1, False), (1.0, 1, False), ("1", 1, False)]
)
def test_counts(value, least, fits):
    """A count is an int from the least up, and never a flag."""
    assert is_count(value, least) is fits


@pytest.mark.parametrize(
    ("names", "shown", "separator", "text"),
    [
        ("", 5, ", ", ""),
        ("abc", 3, ", ", "a, b, c"),
        ("abcd", 3, ", ", "a, b, c and 1 more"),
        ("abcde", 2, "; ", "a; b; and 3 more"),
    ],
)
def test_long_lists_are_cut(names, shown, separator, text):
    """The first items are written out, the others counted, and nothing is said of others when there are none."""
    assert listed(iter(names), shown, separator) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": NaN}', "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', '"b" more than once'),
        ('{"a": 1', "delimiter"),
        ("{} {}", "Extra data"),
    ],
)
def test_strict_json_rejects(text, problem):
    """What the standard does not know, or readers disagree about, is an error that names the place or the key."""
    with pytest.raises(ValueError, match=problem):
        loads(text)


def test_strict_json_cuts_long_keys():
    """A repeated key is named by its first 40 characters."""
    key = "k" * 1000
    with pytest.raises(ValueError, match="more than once") as caught:
        loads(f'{{"{key}": 1, "{key}": 2}}')
    assert len(str(caught.value)) < 80


def test_strict_json_parses():
    """Valid text gives what the standard library gives."""
    assert loads('{"a": [1, 2.5, null, true, "x"], "b": {}}') == {"a": [1, 2.5, None, True, "x"], "b": {}}


@pytest.mark.parametrize(
    ("name", "module", "inside"),
    [("a.b", "a", True), ("a", "a", True), ("ab", "a", False), ("a", "a.b", False), ("a.bc", "a.b", False), ("a", "", True)],
)
def test_inside_a_module(name, module, inside):
    """A name lies inside a module when the module's name is its first whole parts."""
    assert is_inside(name, module) is inside


def test_named_state_has_shared_tensors_by_each_name():
    """A tied weight comes twice, and buffers come as well."""
    model = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "norm": nn.BatchNorm1d(2, affine=False)})
    model["two"] = nn.Linear(2, 2, bias=False)
    model["two"].weight = model["one"].weight
    state = dict(named_state(model))
    assert state["one.weight"] is state["two.weight"]
    assert set(state) - {"one.weight", "two.weight"} == {f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert torch.equal(state["norm.running_var"], torch.ones(2))
