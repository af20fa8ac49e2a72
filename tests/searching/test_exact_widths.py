"""Exact widths in a search: from any proposer and from a language model, within the ranges of groups and within the budget."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import MEASURED, NETWORK, fail, succeed
from llm import options
from subject import subject

import proxyprune as pp
from proxyprune.errors import InputError, LLMInvalidAnswerError
from proxyprune.planning.limits import Limits
from proxyprune.proxy.answers.widths import read_widths, shown_widths
from proxyprune.scoring import find
from proxyprune.searching import History, Proposal
from proxyprune.searching.exact_widths import possible_widths
from proxyprune.testing import FakeLLMServer, attention_network
from proxyprune.testing.fake_llm.received_request import ReceivedRequest, by_place

UP = [f"blocks.{number}.up.weight:0" for number in range(4)]  # 24, 16, 32 and 20 channels
STEM = "stem.weight:0"


def run_search(proposer, target=0.6, **changed):
    network = subject()
    given = {"rounds": 2, "start": "taylor", "batches": network.batches, "loss_fn": network.loss_fn, **changed}
    return pp.search(network.model, network.example_inputs, target, proposer, **given)


@dataclass(frozen=True)
class Widths:
    """Proposes the start with exact widths."""

    widths: dict = field(hash=False)
    name: str = "widths"
    repeats: int = 2

    def propose(self, history: History) -> Proposal:
        """Return the start, with widths."""
        return Proposal(history.start, widths=self.widths)


# From any proposer


def test_the_plan_has_the_widths_and_keeps_the_budget(tmp_path):
    """The solver decides the other groups; widths are remembered, and a resumed search has them."""
    wanted = {UP[0]: 5, UP[2]: 32, STEM: 11}
    result = run_search(Widths(wanted), memory=tmp_path / "m.jsonl")
    entry = result.rounds[1]
    assert entry.exact_widths == wanted
    kept = {group: len(atoms) for group, atoms in entry.plan.kept.items()}
    assert kept[UP[0]] == 5
    assert kept[STEM] == 11
    assert UP[2] not in kept, "a whole group is not cut"
    assert any(len(entry.plan.kept.get(group, ())) for group in (UP[1], UP[3])), "the solver cut the others"
    assert entry.macs <= entry.plan.target_macs
    assert entry.loss is not None
    again = run_search(Widths(wanted), memory=tmp_path / "m.jsonl", resume=True)
    assert again.rounds == result.rounds
    assert all(len(result.rounds[1].plan.kept[group]) == channels for group, channels in wanted.items() if group != UP[2])


@pytest.mark.parametrize("target", [0.9, 0.6, 0.4, 0.2])
def test_widths_that_exceed_the_budget_are_left_out(target):
    """All groups whole fit no budget: the first ones stay as far as a plan exists, the note names the rest, and the budget holds."""
    wanted = dict(zip((*UP, STEM), (24, 16, 32, 20, 12), strict=True))
    result = run_search(Widths(wanted), target)
    entry = result.rounds[1]
    assert entry.macs <= entry.plan.target_macs
    assert list(entry.exact_widths) == list(wanted)[: len(entry.exact_widths)]
    assert len(entry.exact_widths) < len(wanted)
    (note,) = [note for note in entry.ranking.notes if note.startswith("Widths were left out")]
    assert all(f"'{group}' at {channels}" in note for group, channels in list(wanted.items())[len(entry.exact_widths) :])
    one_more = dict(list(wanted.items())[: len(entry.exact_widths) + 1])
    network = subject()
    with pytest.raises(InputError):  # a TargetError, or limits without a width
        pp.prune(network.model, network.example_inputs, target, "magnitude", floors=one_more, ceilings=one_more)


@pytest.mark.parametrize(
    ("group", "channels", "message"),
    [
        (UP[0], 25, f"group '{UP[0]}' cannot have 25 channels; possible are 1 to 24"),
        (UP[0], 0, f"group '{UP[0]}' cannot have 0 channels"),
        (UP[0], -3, "cannot have -3 channels"),
        (UP[0], 7.5, "cannot have 7.5 channels"),
        (UP[0], True, "cannot have True channels"),
        (UP[0], "8", "cannot have '8' channels"),
        ("blocks.9", 8, "'blocks.9' is no channel group that can be cut"),
    ],
)
def test_a_width_that_its_group_cannot_have_is_left_out(group, channels, message):
    """The note names the group and its widths; the other widths stay."""
    entry = run_search(Widths({group: channels, UP[1]: 6})).rounds[1]
    assert entry.exact_widths == {UP[1]: 6}
    assert len(entry.plan.kept[UP[1]]) == 6
    assert any(message in note for note in entry.ranking.notes)


@pytest.mark.parametrize(
    ("limits", "width", "fits"),
    [
        ({"round_to": 4}, 6, "possible are 4 to 24 in steps of 4"),
        ({"floors": {UP[0]: 10}}, 6, "possible are 10 to 24"),
        ({"ceilings": {"blocks.0": 5}}, 6, "possible are 1 to 5"),
        ({"keep": ("blocks.0",)}, 6, "possible are 24"),
    ],
)
def test_widths_stay_within_the_limits_of_the_search(limits, width, fits):
    """Multiples, floors, ceilings and keep patterns of the caller hold for proposed widths too."""
    entry = run_search(Widths({UP[0]: width}), 0.7, **limits).rounds[1]
    assert not entry.exact_widths
    assert any(fits in note for note in entry.ranking.notes)


def test_depth_has_no_widths():
    """The note says so, and the round is measured without them."""
    entry = run_search(Widths({UP[0]: 8}), 0.9, mode="depth").rounds[1]
    assert not entry.exact_widths
    assert any("mode 'depth' cuts none" in note for note in entry.ranking.notes)


def test_possible_widths_are_whole_atoms():
    """A head of several channels stays whole, and the largest width is that of the uncut group."""
    network = attention_network()
    graph = pp.trace(network.model, network.example_inputs)
    for group in graph.prunable:
        found = possible_widths(graph, Limits())[group.id]
        assert found[-1] == group.width
        assert all(width % group.atom_channels == 0 for width in found)
        assert list(found) == sorted(set(found))


# Answers


KEYS, POSSIBLE = {"g0": "a:0", "g1": "b:0"}, {"a:0": (8, 16, 24, 32), "b:0": (3, 5)}


def answer(*entries, reason="r"):
    return json.dumps({"widths": [{"group": group, "channels": channels} for group, channels in entries], "reason": reason})


def test_an_answer_is_read_and_misfits_are_dropped_by_name():
    """Unknown labels, impossible widths and repetitions are recorded with the group's name; the rest counts, in the answer's order."""
    found = read_widths(answer(("g1", 5), ("g9", 8), ("g0", 9), ("g1", 3), ("g0", 16)), KEYS, POSSIBLE)
    assert list(found.widths.items()) == [("b:0", 5), ("a:0", 16)]
    assert found.dropped == (
        "entry 2: unknown label g9",
        "entry 3: g0 ('a:0') cannot have 9 channels; possible are 8 to 32 in steps of 8",
        "entry 4: g1 ('b:0') has a width already",
    )
    assert read_widths(answer(), KEYS, POSSIBLE).widths == {}
    assert shown_widths((3, 5)) == "3, 5"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"widths": []}', "exactly the keys"),
        ('{"widths": {}, "reason": ""}', "must be a list"),
        ('{"widths": [{"group": "g0", "channels": 8.5}], "reason": ""}', "Entries 1 must be objects"),
        ('{"widths": [{"group": "g0", "channels": true}], "reason": ""}', "Entries 1"),
        ('{"widths": [{"group": "g0", "channels": -8}], "reason": ""}', "Entries 1"),
        (answer(("g0", 7)), "cannot have 7 channels"),
        ("none", "not one JSON document"),
    ],
)
def test_an_answer_without_a_usable_width_is_invalid(text, problem):
    """All problems are in the error, so that the model can be asked again."""
    with pytest.raises(LLMInvalidAnswerError, match=problem):
        read_widths(text, KEYS, POSSIBLE)


# A language model over HTTP


LINE = re.compile(r"^(g\d+) (\d+) channels at most, now (\d+); possible: ([^;]+); half of them saves [^;]+; blocks (.*)$", re.MULTILINE)


def test_a_language_model_answers_with_widths():
    """It sees ranges, prices, the best plan's widths and the losses; its widths are in the plan, within the budget."""
    prompts = []

    def reply(asked: ReceivedRequest) -> str:
        if "Propose exact widths" not in asked.prompt:
            return by_place(asked)
        prompts.append(asked.prompt)
        lines = LINE.findall(asked.prompt)
        whole = [label for label, most, *_ in lines if most == "24"]
        return answer((whole[0], 24 - len(prompts)), ("g77", 4), reason="the first block mixes")

    with FakeLLMServer(answer=reply) as server:
        result = run_search(find("local", options(server, "local", ask_widths=True)), rounds=3)
    assert len(prompts) == 2
    lines = {most: (now, possible) for _, most, now, possible, _ in LINE.findall(prompts[0])}
    assert set(lines) == {"12", "16", "20", "24", "32"}
    start = result.rounds[0].plan
    assert lines["24"] == (str(len(start.kept.get(UP[0], range(24)))), "1 to 24")
    assert f"loss {result.rounds[0].loss:.6g}" in prompts[0]
    for number, entry in enumerate(result.rounds[1:], 1):
        assert entry.exact_widths == {UP[0]: 24 - number}
        assert len(entry.plan.kept[UP[0]]) == 24 - number
        assert entry.macs <= entry.plan.target_macs
        assert "Scorer 'local' proposed 1 exact width: the first block mixes" in entry.ranking.notes
        assert any("unknown label g77" in note for note in entry.ranking.notes)
    assert result.proposer == "local(fake, widths)"


def test_bad_widths_cost_a_question_and_no_round():
    """An invalid answer is asked again with its problems; if it stays invalid, the round goes on without widths, with a note."""
    asked_again = []

    def reply(asked: ReceivedRequest) -> str:
        if "Propose exact widths" not in asked.prompt:
            return by_place(asked)
        if len(asked.turns) > 1:
            asked_again.append(str(asked.turns[-1]["content"]))
        return answer((LINE.findall(asked.prompt)[0][0], 1000))

    with FakeLLMServer(answer=reply) as server:
        result = run_search(find("local", options(server, "local", ask_widths=True)))
    entry = result.rounds[1]
    assert entry.loss is not None
    assert not entry.exact_widths
    assert "cannot have 1000 channels; possible are" in asked_again[0]
    assert any("was left out before it was planned" in note and "1000" in note for note in entry.ranking.notes)


def test_recorded_widths_are_replayed(tmp_path):
    """A replay finds the same rounds without a server."""

    def reply(asked: ReceivedRequest) -> str:
        if "Propose exact widths" not in asked.prompt:
            return by_place(asked)
        return answer((LINE.findall(asked.prompt)[0][0], 7), reason="")

    with FakeLLMServer(answer=reply) as server:
        given = options(server, "local", ask_widths=True, cache=tmp_path)
        first = run_search(find("local", given))
    assert first.rounds[1].exact_widths
    replayed = run_search(find("local", {**given, "cache_mode": "replay-only"}))
    assert [entry.exact_widths for entry in replayed.rounds] == [entry.exact_widths for entry in first.rounds]
    assert [entry.key for entry in replayed.rounds] == [entry.key for entry in first.rounds]


def test_the_command_asks_for_widths(tmp_path, monkeypatch):
    """`search --ask-widths` needs a language model, and its rounds list the widths."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK + MEASURED)

    def reply(asked: ReceivedRequest) -> str:
        return answer((LINE.findall(asked.prompt)[0][0], 7)) if "Propose exact widths" in asked.prompt else by_place(asked)

    with FakeLLMServer(answer=reply) as server:
        asking = ("--proposer", "local", "--llm-model", "m", "--base-url", server.url_for("local"), "--samples", 1, "--max-samples", 1)
        given = ("search", "--model", "net.py", "--start", "taylor", "--rounds", 2, *asking, "--ask-widths", "--json")
        data = json.loads(succeed(*given).stdout)
    assert list(data["rounds"][1]["exact_widths"].values()) == [7]
    assert "needs a language model as proposer" in fail("search", "--model", "net.py", "--proposer", "random", "--ask-widths")
