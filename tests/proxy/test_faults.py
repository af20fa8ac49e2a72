"""Everything that can go wrong between here and a language model ends in the right error or in a valid ranking, over real HTTP."""

from __future__ import annotations

import re
import time

import pytest
from invalid_answers import MENDED
from llm import SCORERS, ask, options, small_graph

import proxyprune as pp
from proxyprune.errors import (
    LLMAuthError,
    LLMBudgetError,
    LLMError,
    LLMInvalidAnswerError,
    LLMRateLimitError,
    LLMRefusalError,
    LLMTimeoutError,
    LLMTruncatedError,
    LLMUnavailableError,
)
from proxyprune.scoring import find
from proxyprune.testing import (
    CutOff,
    CutPrompt,
    Dribble,
    Drop,
    Empty,
    FakeLLMServer,
    Html,
    Refusal,
    Slow,
    Status,
    Truncated,
    by_place,
    check_scorer,
    residual_network,
)

WRAPPED = {
    "fenced": "Here is the ranking:\n```json\n{}\n```",
    "bare fence": "```\n{}\n```\nGood luck {with it}.",
    "after thinking": "<think>early {blocks} matter</think>\n{}",
    "both": "<think>\n```json\n{}\n```\n</think>\n\n```json\n{}\n```",
    "prose": "Of course! Here you are: {} Good luck.",
}
"""Forms around valid scores."""
PATIENCE = 30.0
"""Upper limit, in seconds, for an answer that comes at once, even on a busy machine. Without the limit under test it would take longer."""
every_scorer = pytest.mark.parametrize("scorer", SCORERS)


PASSING = {
    "429": Status(429),
    "429 with retry-after": Status(429, retry_after="0.01"),
    "429 with retry-after-ms": Status(429, headers={"retry-after-ms": "10"}),
    "500": Status(500, "internal"),
    "503": Status(503, "no capacity"),
    "529": Status(529, "overloaded"),
    "dropped": Drop(),
    "cut off": CutOff(),
    "cut off, length announced": CutOff(announced=True),
}
FINAL = {
    "401": (Status(401, "no such key"), LLMAuthError),
    "403": (Status(403, "not yours"), LLMAuthError),
    "404": (Status(404, "no such model"), LLMUnavailableError),
    "quota": (Status(429, "pay", error_code="insufficient_quota", headers={"x-should-retry": "false"}), LLMRateLimitError),
    "402": (Status(402, "pay"), LLMRateLimitError),
    "413": (Status(413, "too large"), LLMBudgetError),
    "context": (Status(400, "too long", error_code="context_length_exceeded"), LLMBudgetError),
    "redirect": (Status(307, "elsewhere", headers={"location": "http://127.0.0.1:9/"}), LLMUnavailableError),
    "html": (Html(), LLMUnavailableError),
    "empty object": (Empty(), LLMUnavailableError),
    "refusal": (Refusal(), LLMRefusalError),
    "truncated": (Truncated(), LLMTruncatedError),
}


@every_scorer
def test_keeps_the_contract(scorer):
    """Each LLM scorer passes the suite that plug-ins have to pass."""
    with FakeLLMServer() as server:
        assert not check_scorer(find(scorer, options(server, scorer))).broken


@every_scorer
@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_failure_is_outlived(scorer, fault):
    """After one failure of a passing kind the ranking is the same as without it."""
    with FakeLLMServer([PASSING[fault]]) as server:
        ranking = ask(server, scorer)
        assert len(server.requests) == 3
    with FakeLLMServer() as server:
        assert ask(server, scorer) == ranking


@every_scorer
@pytest.mark.parametrize("fault", ["429", "529", "dropped", "cut off"])
def test_a_failure_that_stays_is_an_error_after_the_retries(scorer, fault):
    """Retries come to an end, with the error of the last failure."""
    with FakeLLMServer([PASSING[fault]] * 20) as server:
        with pytest.raises(LLMRateLimitError if fault == "429" else LLMUnavailableError):
            ask(server, scorer, retries=2)
        assert len(server.requests) == 3


@every_scorer
@pytest.mark.parametrize("fault", FINAL)
def test_a_final_failure_is_its_own_error_at_once(scorer, fault):
    """What waiting does not mend is not repeated."""
    action, error = FINAL[fault]
    with FakeLLMServer([action] * 20) as server:
        with pytest.raises(error) as caught:
            ask(server, scorer)
        assert len(server.requests) == 1
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "fake" in str(caught.value)


@every_scorer
@pytest.mark.parametrize("retry_after", ["3600", "61"])
def test_an_hour_is_not_slept(scorer, retry_after):
    """A service that asks for a longer wait than allowed ends the attempt at once, and the message says how long."""
    with FakeLLMServer([Status(429, retry_after=retry_after)] * 5) as server:
        start = time.monotonic()
        with pytest.raises(LLMRateLimitError, match=f"wait {retry_after} s"):
            ask(server, scorer)
        assert time.monotonic() - start < PATIENCE
        assert len(server.requests) == 1


@every_scorer
@pytest.mark.parametrize("action", [Slow(10 * PATIENCE), Dribble(10 * PATIENCE)], ids=["slow", "dribble"])
def test_a_slow_service_is_left_behind(scorer, action):
    """A request has a limit by the wall clock, also when a byte comes now and then."""
    with FakeLLMServer([action] * 3) as server:
        start = time.monotonic()
        with pytest.raises(LLMTimeoutError):
            ask(server, scorer, timeout_seconds=0.3)
        assert time.monotonic() - start < PATIENCE


def test_the_deadline_covers_retries_and_waits():
    """However patient the retries are, the deadline ends them."""
    with FakeLLMServer([Status(503)] * 50) as server:
        start = time.monotonic()
        with pytest.raises(LLMError):
            ask(server, "openai", retries=40, backoff_seconds=PATIENCE, deadline_seconds=0.6)
        assert time.monotonic() - start < PATIENCE


@every_scorer
@pytest.mark.parametrize("fault", MENDED)
def test_an_invalid_answer_is_asked_again_with_its_errors(scorer, fault):
    """One invalid answer costs one more question, which shows the answer and says what is wrong with it."""
    with FakeLLMServer([MENDED[fault]]) as server:
        ranking = ask(server, scorer)
        assert len(server.requests) == 3
        again = server.requests[1].turns
    assert [turn["role"] for turn in again] == ["user", "assistant", "user"]
    assert "cannot be used" in again[2]["content"]
    assert ranking.unreliable is None or "agree" in ranking.unreliable
    with FakeLLMServer() as server:
        assert ask(server, scorer).scores == ranking.scores


@pytest.mark.parametrize("fault", MENDED)
def test_an_answer_that_stays_invalid_is_an_error(fault):
    """Nothing is repaired: when all answers stay invalid there is no ranking, and the message has the problems."""
    with FakeLLMServer([MENDED[fault]] * 4) as server:
        with pytest.raises(LLMInvalidAnswerError) as caught:
            ask(server, "openai")
        assert len(server.requests) == 4
    assert caught.value.problems


def test_a_sample_that_stays_invalid_is_dropped_and_named():
    """The others make the ranking, and a note says which was dropped and why."""
    with FakeLLMServer([MENDED["list"]] * 2) as server:
        ranking = ask(server, "openai", samples=4, max_samples=4)
    assert any("1 invalid answers were dropped" in note and "array" in note for note in ranking.notes)
    assert "4 times" in ranking.notes[0]


class TestLadder:
    """Servers that know few response formats."""

    @pytest.mark.parametrize("known", ["json_schema", "json_object with schema", "json_object", None])
    def test_finds_the_best_format_once(self, known):
        """The format is found by trying, and the next ranking of the same scorer begins with it."""
        with FakeLLMServer(formats=frozenset({known} - {None})) as server:
            scorer = find("local", options(server, "local"))
            first = pp.score(small_graph(), scorer)
            tried = len(server.requests)
            assert pp.score(small_graph(), scorer) == first
            assert len(server.requests) == tried + 2
            assert tried == 2 + ["json_schema", "json_object with schema", "json_object", None].index(known)

    @pytest.mark.parametrize("form", WRAPPED.values(), ids=WRAPPED)
    @pytest.mark.parametrize("known", ["json_schema", "json_object", None])
    def test_valid_scores_are_read_with_every_format(self, known, form):
        """A server that accepts a format and ignores it, or knows none, may wrap the scores in a fence, in prose, or in its reasoning."""
        with FakeLLMServer(answer=lambda asked: form.replace("{}", by_place(asked)), formats=frozenset({known} - {None})) as server:
            wrapped = ask(server, "local")
        with FakeLLMServer() as server:
            assert wrapped.scores == ask(server, "local").scores

    def test_concurrent_samples_try_once(self):
        """While the format is unknown one request finds it out; the others wait for that, and then go side by side."""
        with FakeLLMServer(formats=frozenset({"json_object"})) as server:
            ask(server, "local", samples=6, max_samples=6, concurrency=6)
            assert len(server.requests) == 8

    def test_a_plain_request(self):
        """Compatible servers get max_tokens, role system, and none of the newer parameters."""
        with FakeLLMServer() as server:
            ask(server, "local")
            body = server.requests[0].body
        assert set(body) == {"model", "messages", "max_tokens", "response_format"}
        assert body["messages"][0]["role"] == "system"


def test_the_hosted_service_is_asked_not_to_store():
    """The Responses API gets store=false and a strict schema."""
    with FakeLLMServer() as server:
        ask(server, "openai")
        body = server.requests[0].body
    assert body["store"] is False
    assert body["text"]["format"]["strict"] is True


class TestFallback:
    """Another scorer only when it was asked for."""

    def test_says_so(self):
        """The ranking names the scorer that took the place, and why."""
        with FakeLLMServer([Refusal()]) as server:
            network = residual_network()
            scorer = find("openai", options(server, "openai", fallback="taylor"))
            given = {"model": network.model, "batches": network.batches, "loss_fn": network.loss_fn}
            ranking = pp.score(small_graph(), scorer, **given)
        assert ranking.scorer == "taylor (fallback of openai)"
        assert ranking.notes[0].startswith("NOT the ranking of 'openai'")
        assert "LLMRefusalError" in ranking.notes[0]
        assert ranking.scores == pp.score(small_graph(), "taylor", **given).scores

    def test_declares_its_needs_before_anything_is_asked(self):
        """Without what the fallback needs, nothing is sent."""
        with FakeLLMServer() as server:
            with pytest.raises(pp.ProxyPruneError, match="needs gradients"):
                ask(server, "openai", fallback="taylor")
            assert not server.requests

    def test_must_exist(self):
        """A misspelt fallback is told when the scorer is made."""
        with FakeLLMServer() as server, pytest.raises(pp.ProxyPruneError, match="taylor"):
            ask(server, "openai", fallback="tailor")


@every_scorer
def test_fenced_scores_of_a_hosted_service(scorer):
    """Fences are read whatever the protocol."""
    with FakeLLMServer(answer=lambda asked: WRAPPED["fenced"].replace("{}", by_place(asked))) as server:
        assert ask(server, scorer).unreliable is None


class TestCauses:
    """What an error or a verdict names as the cause."""

    def test_a_cut_prompt_is_noticed(self, tmp_path):
        """Valid answers to cut prompts are marked unreliable with both figures, in a replay too; one whole prompt clears that."""
        with FakeLLMServer([CutPrompt(50)] * 2) as server:
            ranking = ask(server, "local", cache=tmp_path)
            assert "cut the prompt" in ranking.unreliable
            assert "reports 50 tokens" in ranking.unreliable
            assert ask(server, "local", cache=tmp_path, cache_mode="replay-only") == ranking
        with FakeLLMServer([CutPrompt(50)]) as server:
            assert ask(server, "local").unreliable is None

    def test_a_server_that_reports_no_tokens_is_believed(self):
        """0 tokens say nothing."""
        with FakeLLMServer([CutPrompt(0)] * 2) as server:
            assert ask(server, "local").unreliable is None

    @pytest.mark.parametrize(
        ("action", "formats", "cause"),
        [
            (CutPrompt(50, '{"scores": {"b00": 1}}'), {"json_schema"}, "cut the prompt"),
            (MENDED["out of range"], {"json_schema"}, "Try a larger model"),
            (MENDED["half a JSON"], {"json_schema"}, "did not enforce it"),
            (MENDED["half a JSON"], set(), "understands no response format"),
        ],
    )
    def test_the_cause_is_named(self, action, formats, cause):
        """A larger model is advised only if the answer is JSON with wrong content, and the prompt was read as a whole."""
        texts = ("cut the prompt", "Try a larger model", "did not enforce it", "understands no response format")
        with FakeLLMServer([action] * 12, formats=frozenset(formats)) as server, pytest.raises(LLMInvalidAnswerError) as caught:
            ask(server, "local")
        assert [text for text in texts if text in str(caught.value)] == [cause]

    def test_a_limit_that_is_too_low_names_one_that_is_enough(self):
        """The limits that the message names suffice for two answers, and for all samples."""
        given = {"samples": 4, "max_samples": 4, "price_per_million": (10.0, 10.0)}
        with FakeLLMServer() as server, pytest.raises(LLMBudgetError) as caught:
            ask(server, "local", max_cost_usd=0.0001, **given)
        two, every = (float(text) for text in re.findall(r"\$([\d.]+) (?:is enough for two|for all)", str(caught.value)))
        assert two < every
        with FakeLLMServer() as server:
            assert any("limit of $" in note for note in ask(server, "local", max_cost_usd=two, **given).notes) or len(server.requests) == 4
        with FakeLLMServer() as server:
            ask(server, "local", max_cost_usd=every, **given)
            assert len(server.requests) == 4
