"""Texts, rankings and plans of the zoo stay what they were."""

from __future__ import annotations

import json

import pytest
from golden import FILE, record
from zoo import names

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", names())
def test_text_rankings_and_plans_are_the_recorded_ones(name):
    """The text graph, the fingerprint and every plan are byte for byte those of the record; scores agree to seven digits."""
    expected, found = GOLDEN[name], record(name)
    rankings = found.pop("rankings")
    assert rankings == {scorer: pytest.approx(scores, rel=1e-7) for scorer, scores in expected.pop("rankings").items()}
    assert found == expected


def test_record_covers_the_zoo():
    """Every network of the zoo has a record, and no record is of a network that is gone."""
    assert list(GOLDEN) == names()
