"""Several measurements at once: the same history for any number of processes, resumed inside a batch, and a process that dies."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import MEASURED, NETWORK, succeed
from llm import options
from subject import subject

import proxyprune as pp
from proxyprune.errors import InputError, JournalError, ScoringError
from proxyprune.scoring import find
from proxyprune.searching import History, Proposal
from proxyprune.searching.proposers.evolution import EvolutionProposer
from proxyprune.testing import FakeLLMServer
from proxyprune.testing.fake_llm.received_request import ReceivedRequest, by_place


def run_search(proposer="evolution", loss_fn=None, **changed):
    network = subject()
    given = {"rounds": 5, "batches": network.batches, "recovery": pp.Recovery(1, 1e-2), **changed}
    return pp.search(network.model, network.example_inputs, 0.6, proposer, loss_fn=loss_fn or network.loss_fn, **given)


def outline(rounds) -> list[tuple]:
    return [(entry.index, entry.known, entry.key, entry.loss, entry.verdict, dict(entry.ranking.scores)) for entry in rounds]


@cache
def in_one_process():
    return run_search(batch=3)


def test_the_history_does_not_depend_on_the_number_of_processes():
    """Two processes find bit for bit what one finds, given the same batch; proposals of a batch follow from the same rounds."""
    result = run_search(batch=3, jobs=2)
    assert outline(result.rounds) == outline(in_one_process().rounds)
    assert [entry.known for entry in result.rounds] == [0, 1, 1, 1, 4]
    assert result.measurements == 5
    assert all(torch.equal(tensor, in_one_process().model.state_dict()[name]) for name, tensor in result.model.state_dict().items())


def test_registered_rules_go_to_the_processes():
    """Also one that imitates another op, whose overload torch cannot pickle."""
    with pp.register_rule("aten::erfinv", "aten::linear", arguments={"input": "self", "weight": "self"}, replace=True):
        result = run_search(batch=3, jobs=2)
    assert outline(result.rounds) == outline(in_one_process().rounds)


@pytest.mark.parametrize("left", [2, 3, 4])
def test_a_search_that_stopped_inside_a_batch_goes_on(tmp_path, left):
    """With the memory cut off after any round, the rest of the batch is measured, and nothing twice."""
    memory = tmp_path / "m.jsonl"
    run_search(batch=3, memory=memory)
    lines = memory.read_text().splitlines(keepends=True)
    memory.write_text("".join(lines[: 2 + left]))
    assert outline(run_search(batch=3, memory=memory, resume=True).rounds) == outline(in_one_process().rounds)
    assert [json.loads(line)["round"]["loss"] for line in memory.read_text().splitlines()[2:]] == [
        json.loads(line)["round"]["loss"] for line in lines[2:]
    ]


def test_a_longer_search_is_the_search_in_one(tmp_path):
    """A last batch that the budget had cut short is completed first."""
    run_search(batch=3, rounds=3, memory=tmp_path / "m.jsonl")
    assert outline(run_search(batch=3, memory=tmp_path / "m.jsonl", resume=True).rounds) == outline(in_one_process().rounds)


def test_another_batch_is_another_search(tmp_path):
    """The proposals depend on it, so the memory names it; without a batch nothing changes."""
    run_search(batch=2, rounds=1, memory=tmp_path / "m.jsonl")
    with pytest.raises(JournalError, match="batch was 2"):
        run_search(batch=3, rounds=2, memory=tmp_path / "m.jsonl", resume=True)
    one = run_search("random", rounds=2, memory=tmp_path / "n.jsonl")
    assert [entry.known for entry in one.rounds] == [0, 1]
    assert "batch" not in json.loads((tmp_path / "n.jsonl").read_text().splitlines()[0])


def test_evolution_keeps_to_its_generations():
    """A batch ends with the generation, whose losses the next one needs."""
    rounds = in_one_process().rounds
    assert [EvolutionProposer(population=6).together(rounds[:count]) for count in (1, 2, 5)] == [6, 5, 2]


def test_a_process_that_dies_is_an_error_that_names_the_measurement(tmp_path):
    """The memory holds all measurements before it."""
    parent, loss_fn = os.getpid(), subject().loss_fn

    def deadly(model, batch):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_fn(model, batch)

    with pytest.raises(ScoringError, match=r"ended without a result, during the measurement of round 1 or of one beside it \(round 2\)"):
        run_search(loss_fn=deadly, batch=2, jobs=2, memory=tmp_path / "m.jsonl")
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3


def test_what_cannot_be_sent_is_an_error():
    """A loss that holds a lock names the cause; so do numbers below one."""
    lock, plain = threading.Lock(), subject().loss_fn

    def locked(model, batch):
        with lock:
            return plain(model, batch)

    with pytest.raises(InputError, match=r"cannot be pickled \(TypeError"):
        run_search(loss_fn=locked, batch=2, jobs=2)
    for name in ("jobs", "batch"):
        with pytest.raises(InputError, match=name):
            run_search(**{name: 0})


@dataclass(frozen=True)
class Limiting:
    """Proposes the start again, with limits: one that can be followed, and one that cannot."""

    name: str = "limiting"
    repeats: int = 2

    def propose(self, history: History) -> Proposal:
        """Return the start, with limits."""
        best = history.best
        assert best.loss is not None
        assert 0 < best.kept["blocks.0"] <= 1
        return Proposal(history.start, (pp.Advice("keep", "blocks.0", "it matters"), pp.Advice("keep", "*")))


def test_a_proposal_may_have_limits(tmp_path):
    """They hold for the plan of its round, within the budget, are remembered, and one that no plan can follow is left out with a note."""
    result = run_search(Limiting(), rounds=2, memory=tmp_path / "m.jsonl")
    entry = result.rounds[1]
    assert [limit.pattern for limit in entry.advice] == ["blocks.0"]
    assert entry.plan.options["keep"] == ["blocks.0"]
    assert entry.macs <= entry.plan.target_macs
    assert entry.key != result.rounds[0].key
    assert any(note.startswith("Advice to keep for '*' was left out: ") for note in entry.ranking.notes)
    again = run_search(Limiting(), rounds=2, memory=tmp_path / "m.jsonl", resume=True)
    assert again.rounds == result.rounds


def test_the_command_measures_a_model_file_in_processes(tmp_path, monkeypatch):
    """Classes and loss of the file reach the other processes, although nobody else can import it."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK + MEASURED)
    given = ("search", "--model", "net.py", "--proposer", "random", "--rounds", 3, "--batch", 2, "--json")
    losses = []
    for jobs in (1, 2):
        data = json.loads(succeed(*given, "--jobs", jobs, "--memory", f"{jobs}.jsonl", "--out", f"out{jobs}").stdout)
        losses.append([entry["loss"] for entry in data["rounds"]])
    assert losses[0] == losses[1]
    assert None not in losses[0]


def test_a_language_model_proposes_scores_and_limits():
    """Its second question has the measured losses, the kept shares and the prices; its limits hold for the round."""

    def answer(asked: ReceivedRequest) -> str:
        if "Propose limits" not in asked.prompt:
            return by_place(asked)
        second = next(label for label, place in asked.places.items() if place == 2)
        limit = {"kind": "keep", "targets": [second], "least_percent": 0, "reason": "it mixes"}
        return json.dumps({"advice": [limit], "data": ""})

    with FakeLLMServer(answer=answer) as server:
        scorer = find("local", options(server, "local", ask_advice=True))
        result = run_search(scorer, start="taylor", rounds=3)
        questions = [request.prompt for request in server.requests if "Propose limits" in request.prompt]
    assert len(questions) == len(result.rounds) - 1
    assert f"loss {result.rounds[0].loss:.6g}" in questions[0]
    assert "half of them saves" in questions[0]
    assert "kept b0" in questions[0]
    for entry in result.rounds[1:]:
        assert [limit.pattern for limit in entry.advice] == ["blocks.0"]
        assert entry.plan.options["keep"] == ["blocks.0"]
        assert any("proposed 1 piece of advice" in note for note in entry.ranking.notes)
