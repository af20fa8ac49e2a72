"""Advice from a language model: asked on every rung, checked against the graph, measured, recorded, and replayed."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from commands import MEASURED, NETWORK, fail, succeed
from hypothesis import given, settings, strategies as st
from llm import SCORERS, options
from subject import subject

import proxyprune as pp
from proxyprune.errors import InputError, LLMInvalidAnswerError, LLMReplayMissError, MissingNeedError
from proxyprune.proxy.answers.advice import KINDS, MOST, read_advice
from proxyprune.scoring import find
from proxyprune.testing import FakeLLMServer, Status
from proxyprune.testing.fake_llm.received_request import ReceivedRequest, by_place

KEYS = {"b00": "stem", "b01": "blocks.0", "g00": "stem.weight:0", "g01": "up.weight:0"}
PERMITTED = {
    "keep": frozenset(KEYS),
    "floor": frozenset(KEYS),
    "same_width": frozenset({"g00", "g01"}),
    "remove": frozenset({"b01"}),
}


def entry(kind="keep", targets=("b00",), least_percent=0, reason="a bottleneck") -> dict:
    return {"kind": kind, "targets": list(targets), "least_percent": least_percent, "reason": reason}


def written(*entries: dict, data: str = "") -> str:
    return json.dumps({"advice": list(entries), "data": data})


def place_of(asked: ReceivedRequest, place: int) -> str:
    return next(label for label, found in asked.places.items() if found == place)


def advising(asked: ReceivedRequest) -> str:
    """Score by place; when asked for advice, keep the whole second block, and remove one that does not exist."""
    if "Propose limits" not in asked.prompt:
        return by_place(asked)
    keep = entry("floor", [place_of(asked, 2)], 100, "the only\npath")
    return written(keep, entry("remove", ["b99"]), entry("remove", [place_of(asked, 1)]), data="Batches with rare classes.")


def pruned(server: FakeLLMServer, scorer: str = "local", **changed):
    network = subject()
    judge = find(scorer, options(server, scorer, ask_advice=True, **changed))
    return pp.prune(
        network.model, network.example_inputs, 0.6, judge, batches=network.batches, loss_fn=network.loss_fn, channels=None
    )  # fmt: skip


_LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
_NAMES = st.sampled_from(["advice", "data", "kind", "targets", "least_percent", "reason"])
_JSON = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=6))


class TestAnswer:
    """Reading an answer."""

    @pytest.mark.parametrize(("before", "after"), [("", ""), ("<think>keep {}</think>\n", ""), ("Here it is:\n```json\n", "\n```\nDone.")])
    def test_read_wherever_it_stands(self, before, after):
        """Fences, prose and reasoning are left out, as for scores."""
        text = written(entry("floor", ["b00", "g00"], 50), data="Use  any\nbatch.")
        found = read_advice(before + text + after, KEYS, PERMITTED)
        assert [(limit.kind, limit.targets, limit.least) for limit in found.limits] == [("floor", ("stem", "stem.weight:0"), 0.5)]
        assert (found.data, found.dropped) == ("Use any batch.", ())

    def test_what_does_not_fit_the_network_is_dropped_and_recorded(self):
        """Unknown labels, blocks that cannot leave, one group alone, an empty floor and too many entries; the rest counts."""
        found = read_advice(
            written(
                entry(targets=["b00", "b77"]),
                entry("remove", ["b00"]),
                entry("same_width", ["g00", "b00"]),
                entry("floor", ["b00"]),
                entry("remove", ["b01"]),
                entry("same_width", ["g00", "g01"]),
                *(entry("floor", ["b00"], percent) for percent in range(1, MOST + 1)),
            ),
            KEYS,
            PERMITTED,
        )
        assert [limit.kind for limit in found.limits] == ["keep", "remove", "same_width", *["floor"] * (MOST - 3)]
        assert found.limits[0].targets == ("stem",)
        assert [text.partition(":")[0] for text in found.dropped[:4]] == [
            "entry 1 (keep)", "entry 2 (remove)", "entry 3 (same_width)", "entry 4 (floor)",
        ]  # fmt: skip
        assert "unknown labels b77" in found.dropped[0]
        assert "not possible for b00" in found.dropped[1]
        assert len([text for text in found.dropped if "more than" in text]) == 3

    @pytest.mark.parametrize(
        "wrong",
        [
            {"advice": []}, {"advice": {}, "data": ""}, {"advice": [], "data": 1}, [], {"advice": [1], "data": ""},
            {"advice": [entry("wish")], "data": ""}, {"advice": [{**entry(), "targets": "b00"}], "data": ""},
            {"advice": [entry(least_percent=101)], "data": ""}, {"advice": [entry(least_percent=True)], "data": ""},
            {"advice": [{**entry(), "reason": None}], "data": ""}, {"advice": [{**entry(), "why": ""}], "data": ""},
        ],
    )  # fmt: skip
    def test_a_wrong_shape_is_an_invalid_answer(self, wrong):
        """It is asked again, so it is an error with the problems."""
        with pytest.raises(LLMInvalidAnswerError, match="no valid advice") as caught:
            read_advice(json.dumps(wrong), KEYS, PERMITTED)
        assert caught.value.problems

    @given(_JSON)
    @settings(max_examples=200, deadline=None)
    def test_whatever_is_written_is_advice_or_our_error(self, value):
        """No other exception comes out."""
        try:
            found = read_advice(json.dumps(value), KEYS, PERMITTED)
        except LLMInvalidAnswerError:
            return
        assert all(limit.kind in KINDS and limit.targets for limit in found.limits)


@pytest.mark.parametrize("scorer", SCORERS)
def test_advice_is_asked_for_measured_and_recorded(scorer):
    """One more request; the proposal gets a verdict with losses, the unknown label and the note on data are in the plan's notes."""
    with FakeLLMServer(answer=advising) as server:
        result = pruned(server, scorer)
        asked = [request for request in server.requests if "Propose limits" in request.prompt]
        assert len(asked) == 1
        assert len(server.requests) == 3
    notes = result.plan.notes
    assert f"Scorer '{scorer}' proposed 1 piece of advice." in notes
    assert any("entry 2 (remove): unknown labels b99" in note for note in notes)
    assert any("entry 3 (remove): not possible for" in note for note in notes)
    assert f"Note of '{scorer}' on calibration data: \"Batches with rare classes.\"" in notes
    verdict = next(note for note in notes if note.startswith("Advice to floor of 1.0 for 'blocks.0' (the only path) was "))
    kept = result.plan.options["floors"] == {"blocks.0": 1.0}
    assert f"was {'kept' if kept else 'dropped'}, held-out loss" in verdict


@pytest.mark.parametrize("formats", [{"json_schema"}, {"json_object"}, set()], ids=["schema", "object", "text"])
def test_every_rung_of_response_formats_takes_the_question(formats):
    """The same formats are tried as for scores, and the answer may stand in a fence."""

    def fenced(asked: ReceivedRequest) -> str:
        return f"<think>?</think>\n```json\n{advising(asked)}\n```"

    with FakeLLMServer(answer=fenced, formats=frozenset(formats)) as server:
        assert any("proposed 1 piece" in note for note in pruned(server).plan.notes)


def test_the_prompt_has_groups_and_no_names_and_source_only_on_request():
    """Names and code stay here, unless asked for; then each class appears once, with the blocks that it is of."""
    with FakeLLMServer(answer=advising) as server:
        pruned(server)
        prompt = server.requests[-1].prompt
        assert re.search(r"^g\d\d 24 channels; half of them saves \d+\.\d+% of the MACs; blocks b\d\d$", prompt, re.MULTILINE)
        assert not re.search(r"stem\.|blocks\.\d|class |\.weight", prompt)
        pruned(server, show_source=True)
        shown = server.requests[-1].prompt
    assert shown.count("class Residual(nn.Module)") == 1
    assert re.search(r"^Blocks b\d\d, b\d\d, b\d\d, b\d\d:\nclass Residual", shown, re.MULTILINE)
    assert all("class Residual" not in request.prompt for request in server.requests[:-1])


def test_a_long_question_lists_the_costliest_blocks():
    """It keeps to prompt_tokens, and says what is missing."""
    network = subject()
    graph = pp.trace(network.model, network.example_inputs)
    with FakeLLMServer() as server:
        scorer = find("local", options(server, "local", ask_advice=True, show_source=True, prompt_tokens=2600))
        question = scorer.preview(graph, pp.ScoringContext(model=network.model)).prompts[-1]
    assert question.tokens <= 2600
    assert "... (cut)" in question.user


def test_an_invalid_answer_is_asked_again_and_then_no_advice(tmp_path, monkeypatch):
    """The plan is made without advice and says why; a replay does the same with all sockets blocked."""

    def stubborn(asked: ReceivedRequest) -> str:
        return "no advice today" if "Propose limits" in asked.prompt else by_place(asked)

    with FakeLLMServer(answer=stubborn) as server:
        first = pruned(server, cache=tmp_path)
        assert len(server.requests) == 4
        assert "cannot be used" in server.requests[-1].turns[-1]["content"]
        monkeypatch.setattr(socket, "create_connection", None)
        again = pruned(server, cache=tmp_path, cache_mode="replay-only")
    assert any("no valid advice, even after" in note for note in first.plan.notes)
    assert again.plan == first.plan


def test_a_replay_is_the_same_and_a_missing_answer_is_named(tmp_path):
    """Recorded advice replays byte for byte; advice that was never asked for is a miss."""
    with FakeLLMServer(answer=advising) as server:
        first = pruned(server, cache=tmp_path)
        count = len(server.requests)
        assert pruned(server, cache=tmp_path, cache_mode="replay-only").plan.to_text() == first.plan.to_text()
        assert len(server.requests) == count
        with pytest.raises(LLMReplayMissError, match="does not exist"):
            pruned(server, cache=tmp_path, cache_mode="replay-only", show_source=True)
    log = (tmp_path / "audit.jsonl").read_text()
    assert "Batches with rare classes." in log


def test_the_limit_of_cost_holds_for_ranking_and_advice_together():
    """If the ranking leaves too little, nobody is asked for advice, and the note names a sufficient limit, which is then enough."""
    priced = {"price_per_million": (10.0, 10.0), "max_output_tokens": 100}

    def twice(asked: ReceivedRequest) -> str:
        return "{}" if len(asked.turns) == 1 and "Propose limits" not in asked.prompt else advising(asked)

    with FakeLLMServer(answer=twice) as server:
        free = pruned(server, **priced)
        scorer = find("local", options(server, "local", ask_advice=True, **priced))
        context, graph = pp.ScoringContext(), pp.trace(subject().model, subject().example_inputs)
        assert scorer.preview(graph, context).estimate.requests == (3, 6)
        ranking_alone = find("local", options(server, "local", **priced)).preview(graph, context).estimate.usd[1]
        refused = pruned(server, max_cost_usd=1.001 * ranking_alone, **priced)
        note = next((text for text in refused.plan.notes if "not asked" in text), None)
        assert note is not None
        enough = float(re.search(r"a limit of \$([\d.]+) is enough", note)[1])
        again = pruned(server, max_cost_usd=1.01 * enough, **priced)
    assert any("proposed 1 piece" in text for text in again.plan.notes)
    assert again.plan.kept == free.plan.kept


def test_a_fallback_covers_the_advice_too():
    """If the service fails at the question, pruning goes on without advice; without a fallback it is an error."""

    def failing(times: int) -> list:
        return [*[_says_scores()] * 2, *[Status(400, "bad")] * times]

    with FakeLLMServer(failing(9)) as server:
        notes = pruned(server, fallback="magnitude").plan.notes
    assert any("left out before it was measured: no answer: " in note for note in notes)
    with FakeLLMServer(failing(9)) as server, pytest.raises(pp.errors.LLMError):
        pruned(server)


def _says_scores():
    from proxyprune.testing.fake_llm.faults import Says

    return Says(by_place)


def test_advice_needs_data_before_anybody_is_asked():
    """It is measured; without data nothing is sent."""
    network = subject()
    with FakeLLMServer(answer=advising) as server:
        with pytest.raises(MissingNeedError, match="Advice is measured"):
            pp.prune(network.model, network.example_inputs, 0.6, find("local", options(server, "local", ask_advice=True)))
        assert not server.requests
        with pytest.raises(InputError, match="needs ask_advice"):
            find("local", options(server, "local", show_source=True))


def test_the_command_asks_shows_and_refuses(tmp_path, monkeypatch):
    """prune has the verdict in its notes, a dry run shows the question, and score has no use for it."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK + MEASURED)
    with FakeLLMServer(answer=advising) as server:
        asked = ("--scorer", "local", "--llm-model", "fake", "--base-url", server.openai_url, "--samples", "2", "--max-samples", "2")
        given = ("--model", "net.py", *asked, "--ask-advice")
        dry = succeed("score", *given, "--dry-run", "--show-source").stdout
        assert "Propose limits" in dry
        assert "class Residual" in dry
        assert not server.requests
        data = json.loads(succeed("prune", *given, "--plan-only", "--json").stdout)
        assert any("proposed 1 piece of advice" in note for note in data["plan"]["notes"])
        assert "use it with prune" in fail("score", *given)
