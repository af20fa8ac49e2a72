"""Rankings: order, limits, and JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

import proxyprune as pp
from proxyprune.errors import InvalidScoreError
from proxyprune.scoring import Ranking

importances = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0.0, 1.0), max_size=8)


def example() -> Ranking:
    return Ranking(
        scores={"stem": 0.25, "body": 1.0, "head": 0.25},
        scorer="magnitude",
        confidence=0.5,
        channel_scores={"stem.weight:0": (0.5, 2.0)},
        seed=7,
        notes=("Made by hand.",),
    )


def test_the_most_important_block_comes_first_and_ties_stay_in_graph_order() -> None:
    """Equal scores stand as they stand in `scores`."""
    assert example().order == ("body", "stem", "head")


@given(importances)
def test_order_holds_every_block_once_and_never_rises(scores: dict[str, float]) -> None:
    """The order is a permutation of the blocks by falling score."""
    order = Ranking(scores, "x").order
    assert sorted(order) == sorted(scores)
    assert all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))


@given(importances, st.integers(0, 2**40), st.none() | st.floats(-1.0, 1.0))
def test_a_ranking_reads_back_from_its_json(scores: dict[str, float], seed: int, confidence: float | None) -> None:
    """JSON keeps every field and the order of the blocks."""
    ranking = Ranking(scores, "x", confidence=confidence, seed=seed)
    back = Ranking.from_dict(json.loads(json.dumps(ranking.to_dict())))
    assert back == ranking
    assert list(back.scores) == list(ranking.scores)


def test_the_file_is_the_same_each_time_and_reads_back(tmp_path: Any) -> None:
    """Two files of one ranking are equal byte for byte."""
    for name in ("a.json", "b.json"):
        example().to_json(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert Ranking.from_dict(json.loads((tmp_path / "a.json").read_text())) == example()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -1e-9, 1.0 + 1e-9, "0.5", None])
def test_a_score_that_is_no_number_in_0_to_1_is_refused(score: Any) -> None:
    """The message names the block and the value."""
    with pytest.raises(InvalidScoreError, match=r"'body'.*expected a finite number in \[0, 1\]"):
        Ranking({"stem": 0.5, "body": score}, "x")


@pytest.mark.parametrize("score", [0.0, 1.0, 0, 1])
def test_the_limits_themselves_are_allowed(score: float) -> None:
    """0 and 1 are scores."""
    assert Ranking({"stem": score}, "x").order == ("stem",)


def test_another_schema_is_refused() -> None:
    """A ranking from another version is not guessed at."""
    with pytest.raises(InvalidScoreError, match="schema"):
        Ranking.from_dict({**example().to_dict(), "schema": 99})


def test_a_ranking_is_frozen_and_public() -> None:
    """Fields cannot be set, and `pp.Ranking` is this class."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().seed = 1  # type: ignore[misc]
    assert pp.Ranking is Ranking
