"""A real language model on this machine: left out by default, `make local-llm` serves one and runs this.

What a model of this size answers is noise; what is tested is everything around it.
"""

from __future__ import annotations

import os

import pytest
from llm import small_graph

import proxyprune as pp
from proxyprune.errors import LLMTimeoutError, LLMTruncatedError, UnreliableRankingError
from proxyprune.proxy import LocalScorer

pytestmark = pytest.mark.local_llm

URL = os.environ.get("PROXYPRUNE_TEST_LLM_URL", "")
QUICK = {"samples": 2, "max_samples": 2, "concurrency": 1, "timeout_seconds": 120.0}


@pytest.fixture
def model() -> str:
    """Name of the served model."""
    if not URL:
        pytest.skip("PROXYPRUNE_TEST_LLM_URL is not set: run `make local-llm`, which serves a model.")
    return os.environ["PROXYPRUNE_TEST_LLM_MODEL"]


def test_answers_are_complete_and_a_plan_is_refused(model):
    """The real server binds a real model to the schema on the second rung; its ranking is marked unreliable, and planning refuses it."""
    scorer = LocalScorer(model=model, base_url=URL, **QUICK)
    ranking = pp.score(small_graph(), scorer)
    assert set(ranking.scores) == {block.id for block in small_graph().blocks}
    assert scorer._ladder.rung(URL).name == "json_object with schema"
    if ranking.unreliable is None:
        pytest.skip("two answers of a tiny model happened to agree")
    with pytest.raises(UnreliableRankingError):
        pp.make_plan(small_graph(), ranking, 0.6)


def test_a_limit_of_tokens_is_kept_and_told(model):
    """An answer that is cut off by its limit is no answer."""
    with pytest.raises(LLMTruncatedError):
        pp.score(small_graph(), LocalScorer(model=model, base_url=URL, max_output_tokens=8, **QUICK))


def test_time_is_kept(model):
    """A model that is too slow is left behind."""
    with pytest.raises(LLMTimeoutError):
        pp.score(small_graph(), LocalScorer(model=model, base_url=URL, **{**QUICK, "timeout_seconds": 0.2}))
