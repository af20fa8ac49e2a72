"""The cache: a recorded ranking comes back byte for byte without any network, and damage is noticed."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest
from invalid_answers import MENDED
from llm import SCORERS, ask, options, small_graph

import proxyprune as pp
from proxyprune.errors import InputError, LLMBudgetError, LLMReplayMissError, StorageError
from proxyprune.scoring import Brief, find
from proxyprune.testing import FakeLLMServer, SimulatedProxy, Status, attention_network, residual_network

REPLAY = {"cache_mode": "replay-only"}


@pytest.fixture
def no_network(monkeypatch):
    """Sockets raise, and so does looking a name up."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a replay must not touch the network")

    def block() -> None:
        for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
            monkeypatch.setattr(socket, name, refuse)

    return block


def bytes_of(ranking: pp.Ranking) -> bytes:
    return json.dumps(ranking.to_dict()).encode()


def plan_of(ranking: pp.Ranking) -> str:
    return pp.make_plan(small_graph(), ranking, 0.6, model=residual_network().model).to_text()


def files(folder: Path, kind: str = "answers") -> list[Path]:
    return sorted((folder / kind).rglob("*.json"))


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_replay_is_the_same_byte_for_byte_without_a_network(scorer, tmp_path, no_network):
    """Ranking and plan of a noisy model with mended and dropped answers, with all sockets blocked and another port in the address."""
    truth = [block.macs for block in small_graph().blocks]
    faults = [MENDED["list"], Status(500), MENDED["duplicate"], MENDED["duplicate"]]
    with FakeLLMServer(faults, answer=SimulatedProxy(truth, noise=0.4)) as server:
        given = {"cache": tmp_path, "samples": 5, "max_samples": 9, "centre": "kemeny"}
        first = ask(server, scorer, brief=Brief(0.6), seed=3, **given)
    assert any("dropped" in note for note in first.notes)
    plan = plan_of(first)
    no_network()
    replayed = ask(server, scorer, brief=Brief(0.6), seed=3, **given, **REPLAY, audit=None)
    assert bytes_of(replayed) == bytes_of(first)
    assert plan_of(replayed) == plan


def test_a_replay_makes_no_client_and_writes_nothing(tmp_path, monkeypatch):
    """It works without a key for the hosted service, and the folder stays as it is."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeLLMServer() as server:
        ask(server, "openai", cache=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        count = len(server.requests)
        ask(server, "openai", cache=tmp_path, **REPLAY)
        assert len(server.requests) == count
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_recorded_answers_are_not_asked_for_again(tmp_path):
    """In read-write mode a second ranking of the same is free, and more samples add only what is new."""
    with FakeLLMServer() as server:
        first = ask(server, "openai", cache=tmp_path)
        assert ask(server, "openai", cache=tmp_path) == first
        assert len(server.requests) == 2
        ask(server, "openai", cache=tmp_path, samples=4, max_samples=4)
        assert len(server.requests) == 4
        ask(server, "openai", cache=tmp_path, cache_mode="off")
        assert len(server.requests) == 6


@pytest.mark.parametrize(
    "changed",
    [{"model": "other"}, {"max_output_tokens": 77}, {"real_names": True}, {"temperature": 0.5}, {"seed": 1}, {"brief": Brief(0.4)}],
)
def test_another_question_is_a_miss(changed, tmp_path):
    """Whatever changes the answer changes the key; a replay then names the file that it misses."""
    with FakeLLMServer() as server:
        ask(server, "openai", cache=tmp_path)
        with pytest.raises(LLMReplayMissError, match="does not exist"):
            ask(server, "openai", **{"cache": tmp_path, **REPLAY, **changed})
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "changed", [{"timeout_seconds": 9.0}, {"retries": 1}, {"concurrency": 3}, {"deadline_seconds": 50.0}, {"max_cost_usd": 0.0}]
)
def test_how_long_to_wait_is_no_part_of_the_question(changed, tmp_path):
    """Limits of time and money do not matter to a replay."""
    with FakeLLMServer() as server:
        first = ask(server, "openai", cache=tmp_path)
        assert ask(server, "openai", cache=tmp_path, **REPLAY, **changed) == first


DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "another score": lambda text: text.replace('"text": "{\\"scores\\": {\\"b', '"text": "{\\"scores\\":  {\\"b'),
    "another schema": lambda text: text.replace('"schema": 1', '"schema": 2'),
    "no JSON": lambda text: "\x00" + text,
    "a list": lambda text: "[]",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_answer_is_asked_again_and_refused_by_a_replay(damage, tmp_path):
    """A file whose content does not fit its hash counts as absent; a replay says which one."""
    with FakeLLMServer() as server:
        first = ask(server, "openai", cache=tmp_path)
        victim = files(tmp_path)[0]
        whole = victim.read_text()
        victim.write_text(DAMAGE[damage](whole))
        assert victim.read_text() != whole
        with pytest.raises(LLMReplayMissError, match=victim.name):
            ask(server, "openai", cache=tmp_path, **REPLAY)
        assert ask(server, "openai", cache=tmp_path) == first
        assert len(server.requests) == 3
        assert ask(server, "openai", cache=tmp_path, **REPLAY) == first


def test_only_valid_answers_are_recorded(tmp_path):
    """Invalid, failed and truncated ones leave a line in the audit log and no answer."""
    with FakeLLMServer([Status(500), *[MENDED["list"]] * 2]) as server:
        ask(server, "openai", cache=tmp_path, samples=3, max_samples=3)
    assert len(files(tmp_path)) == 2
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["failed", "answered", "answered", "answered", "answered"]
    assert lines[0]["error"] == "LLMUnavailableError"
    assert "# List of blocks" in lines[1]["turns"][0]["text"]


def test_nothing_half_written_stays(tmp_path):
    """No temporary file is left, and every file is whole."""
    with FakeLLMServer() as server:
        ask(server, "openai", cache=tmp_path, samples=6, max_samples=6, concurrency=6)
    assert len(files(tmp_path)) == 6
    assert not list(tmp_path.rglob("*.tmp"))
    assert all(json.loads(path.read_text())["key"] == path.stem for path in files(tmp_path))


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    """The message says what could not be written."""
    (tmp_path / "file").write_text("")
    with FakeLLMServer() as server, pytest.raises(StorageError):
        ask(server, "openai", cache=tmp_path / "file")


def test_a_replay_needs_a_folder():
    """Said when the scorer is made."""
    with pytest.raises(InputError, match="needs cache"):
        find("openai", {"model": "any", **REPLAY})


class TestMoney:
    """Estimates and limits."""

    def test_unknown_is_not_nothing(self):
        """Without a known price a limit is refused before anything is sent, and the estimate has no money in it."""
        with FakeLLMServer() as server:
            with pytest.raises(LLMBudgetError, match="price"):
                ask(server, "local", max_cost_usd=1.0)
            scorer = find("local", options(server, "local"))
            assert scorer.preview(small_graph(), pp.ScoringContext()).estimate.usd is None
            assert not server.requests

    def test_stops_before_the_limit(self, tmp_path):
        """As many samples as surely fit, a note that says so, and the same ranking in a replay."""
        with FakeLLMServer(answer=SimulatedProxy(range(6), noise=2.0)) as server:
            given = {"samples": 2, "max_samples": 9, "max_output_tokens": 100, "price_per_million": (10.0, 10.0), "cache": tmp_path}
            one = 2 * (4000 / 2.1 + 200) * 10 / 1e6
            ranking = ask(server, "local", max_cost_usd=one + 3 * (4000 / 3 + 20) * 10 / 1e6, **given)
            count = len(server.requests)
            assert 2 <= count < 9
            assert any("limit of $" in note for note in ranking.notes)
            assert ask(server, "local", **given, **REPLAY) == ranking

    def test_too_low_for_two_samples(self):
        """Nothing is sent when not even two samples surely fit."""
        with FakeLLMServer() as server:
            with pytest.raises(LLMBudgetError, match="too low for two"):
                ask(server, "local", max_cost_usd=0.0001, price_per_million=(10.0, 10.0))
            assert len(server.requests) == 0

    def test_the_bound_holds(self):
        """What is used lies below the upper bound, whatever the answers are."""
        with FakeLLMServer() as server:
            scorer = find("local", options(server, "local", price_per_million=(1.0, 2.0)))
            estimate = scorer.preview(small_graph(), pp.ScoringContext()).estimate
        assert estimate.usd is not None
        assert 0 < estimate.usd[0] <= estimate.usd[1]
        assert estimate.requests == (2, 4)

    def test_prices_of_hosted_models(self):
        """The price list is asked offline for hosted models, and does not know every name."""
        pytest.importorskip("genai_prices")
        from proxyprune.proxy.service.endpoint import ANTHROPIC, endpoint_of
        from proxyprune.proxy.session.price import price_of

        hosted = endpoint_of(None, ANTHROPIC)
        known = price_of(hosted, "claude-haiku-4-5", None)
        assert known is not None
        assert 0 < known.input_usd < known.output_usd
        assert price_of(hosted, "no-such-model-at-all", None) is None
        assert price_of(endpoint_of("http://127.0.0.1:1", ANTHROPIC), "claude-haiku-4-5", None) is None


def test_answers_recorded_about_the_lines_of_the_first_release_still_replay(tmp_path, no_network):
    """A transformer's lines are read differently now; a replay without answers about them finds the old ones."""
    network = attention_network()
    traced = pp.trace(network.model, network.example_inputs, probe=False)
    read_again = dataclasses.replace(traced, first_reading=tuple(dataclasses.replace(block, kind="other") for block in traced.blocks))
    with FakeLLMServer() as server:
        given = options(server, "openai", cache=str(tmp_path))
        recorded = pp.score(dataclasses.replace(traced, blocks=read_again.first_reading), find("openai", given))
        assert any("other" in asked.prompt for asked in server.requests)
    no_network()
    assert bytes_of(pp.score(read_again, find("openai", {**given, **REPLAY}))) == bytes_of(recorded)
    with pytest.raises(LLMReplayMissError):
        pp.score(read_again, find("openai", {**given, **REPLAY}), seed=5)
