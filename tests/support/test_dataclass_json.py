"""Dataclasses as plain JSON values, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, strategies as st

from proxyprune.support.dataclass_json import from_plain, to_plain


@dataclass(frozen=True)
class Own:
    """A value whose file differs from its fields."""

    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds."""
        return {"ms": 1000.0 * self.seconds}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Own:
        """Read what `to_dict` wrote."""
        return cls(data["ms"] / 1000.0)


@dataclass(frozen=True)
class Inner:
    """A value inside another one."""

    count: int = 0
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    """Every kind of field that the package has."""

    name: str
    losses: tuple[float, ...]
    inner: Inner = Inner()
    own: Own | None = None
    pairs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ties: tuple[tuple[str, str], ...] = ()
    target: float | int | str = 0.6
    limit: int | None = None
    on: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    inners: tuple[Inner, ...] = ()


FULL = Outer(
    "n", (1.0, 2.5), Inner(3, 0.25), Own(2.0), {"a": (1, 2)}, (("a", "b"),), "3.4G", 7, True, {"x": [1, {"y": None}]}, (Inner(), Inner(9))
)


def test_both_ways():
    """A value comes back from its JSON text as it was."""
    assert from_plain(Outer, json.loads(json.dumps(to_plain(FULL)))) == FULL


def test_plain_values():
    """Fields stand in the order of the class, tuples are lists, and a value with a format of its own uses it."""
    plain = to_plain(FULL)
    assert list(plain) == list(Outer.__dataclass_fields__)
    assert (plain["losses"], plain["own"], plain["pairs"]) == ([1.0, 2.5], {"ms": 2000.0}, {"a": [1, 2]})
    assert plain["inner"] == {"count": 3, "share": 0.25}
    assert "losses" not in to_plain(FULL, omit=("losses",))


numbers = st.floats(allow_nan=False)
inners = st.builds(Inner, st.integers(), numbers)
targets = numbers | st.integers() | st.text()


@given(st.builds(Outer, st.text(), st.lists(numbers).map(tuple), inners, target=targets, limit=st.none() | st.integers()))
def test_both_ways_for_any_value(value):
    """Nothing is lost or changed on the way, whatever the values are."""
    assert from_plain(Outer, json.loads(json.dumps(to_plain(value)))) == value


def test_what_has_a_default_may_be_missing():
    """Only fields without a default are needed."""
    assert from_plain(Outer, {"name": "n", "losses": []}) == Outer("n", ())


def test_whole_numbers_become_floats_where_the_class_has_a_float():
    """1 and 1.0 are one number in JSON; a field that takes both keeps what it finds."""
    found = from_plain(Outer, {"name": "n", "losses": [1, 2.0], "target": 1})
    assert [type(value) for value in (*found.losses, found.target)] == [float, float, int]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": 3}, "name must be text, found 3"),
        ({"losses": "x"}, "losses must be a list, found 'x'"),
        ({"losses": [1.0, True]}, "losses[1] must be a number, found True"),
        ({"inner": {"count": 1.5}}, "inner.count must be a whole number, found 1.5"),
        ({"inner": {"count": True}}, "inner.count must be a whole number, found True"),
        ({"inner": []}, "inner must be an object, found []"),
        ({"pairs": {"a": [1]}}, "pairs.a must be a list of 2, found [1]"),
        ({"pairs": {"a": [1, "2"]}}, "pairs.a[1] must be a whole number, found '2'"),
        ({"ties": [["a", "b"], ["a", 1]]}, "ties[1][1] must be text, found 1"),
        ({"target": None}, "target must be a number or a whole number or text, found None"),
        ({"target": False}, "target must be a number or a whole number or text, found False"),
        ({"limit": "many"}, "limit must be a whole number or null, found 'many'"),
        ({"on": 1}, "on must be true or false, found 1"),
        ({"options": 3}, "options must be an object, found 3"),
        ({"inners": [{}, {"share": "x"}]}, "inners[1].share must be a number, found 'x'"),
        ({"losses": [10**400]}, "losses[0] must be a number, found 1" + "0" * 79 + "…"),
        ({"name": "x", "losses": ["y" * 1000]}, "losses[0] must be a number, found '" + "y" * 79 + "…"),
    ],
)
def test_a_mistake_is_named_with_its_place(change, problem):
    """The message has the dotted name of the field, what it must be, and what was found."""
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        from_plain(Outer, {"name": "n", "losses": []} | change)


def test_all_mistakes_at_once():
    """What is missing, unknown and wrong makes one error, of the caller's kind."""
    with pytest.raises(LookupError) as caught:
        from_plain(Outer, {"losses": [None], "typo": 1, "inner": {"cuont": 2}}, LookupError, unknown=lambda name: f"no {name}")
    assert caught.value.args[0] == ["no typo", "name is missing", "losses[0] must be a number, found None", "no inner.cuont"]


def test_unknown_keys_are_ignored_without_a_sentence_for_them():
    """Derived values in a file do not hinder its reading."""
    assert from_plain(Inner, {"count": 1, "mean": 3.0}) == Inner(1)


def test_no_object():
    """Content that is no object says so."""
    with pytest.raises(ValueError, match=r"the content must be an object, found \[1\]"):
        from_plain(Inner, [1])
