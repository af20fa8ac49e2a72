"""Formula search: breeding within limits, rounds that repeat and resume, and a language model as one more operator."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from commands import MEASURED, NETWORK, fail, succeed
from hypothesis import given, settings, strategies as st
from llm import options
from subject import subject

import proxyprune as pp
from proxyprune.errors import FormulaError, InputError, JournalError
from proxyprune.scoring import FormulaScorer, find
from proxyprune.scoring.formula.expression import FEATURES, levels, nodes, written
from proxyprune.scoring.formula.parser import parsed
from proxyprune.searching import FormulaProposer, proposer_named
from proxyprune.searching.breeding import Breeding, Individual
from proxyprune.searching.proposers.formula import KNOWN
from proxyprune.testing import FakeLLMServer
from proxyprune.testing.fake_llm.received_request import ReceivedRequest

RECOVERY = pp.Recovery(1, 1e-2)


def run_search(proposer="formula", **changed):
    network = subject()
    given = {"rounds": 12, "recovery": RECOVERY, "batches": network.batches, "loss_fn": network.loss_fn, **changed}
    return pp.search(network.model, network.example_inputs, 0.6, proposer, **given)


def outline(rounds) -> list[tuple]:
    return [(entry.index, entry.formula, entry.key, entry.loss, entry.verdict, entry.ranking.notes) for entry in rounds]


@cache
def uninterrupted():
    return run_search()


# Breeding


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 7), st.integers(3, 30))
def test_children_are_formulas_within_the_limits(seed, most_levels, most_nodes):
    """Random trees and children of any population can be written and read, and are not larger than allowed."""
    breeding, rng = Breeding(tuple(FEATURES), most_levels, most_nodes), np.random.default_rng(seed)
    population = [Individual(parsed(text), float(rank)) for rank, text in enumerate(("wg", "w * act", "sqrt(g) - 1"))]
    population = [one for one in population if levels(one.tree) <= most_levels and nodes(one.tree) <= most_nodes]
    for _ in range(30):
        population.append(Individual(breeding.random(rng), float(rng.random())))
        tree, how = breeding.child(population, rng)
        assert how in ("crossover", "changed node", "subtree", "mutation")
        population.append(Individual(tree, float(rng.random())))
    for one in population:
        assert parsed(written(one.tree)) == one.tree
        assert levels(one.tree) <= most_levels
        assert nodes(one.tree) <= most_nodes


def test_breeding_repeats():
    """The same generator state gives the same trees."""
    trees = [
        [written(Breeding(("w", "g")).random(rng)) for _ in range(20)]
        for rng in (np.random.default_rng(3), np.random.default_rng(3), np.random.default_rng(4))
    ]
    assert trees[0] == trees[1] != trees[2]


def test_better_formulas_have_more_children():
    """Tournaments prefer small losses: most children of a good and a bad formula have parts of the good one only."""
    rng = np.random.default_rng(0)
    population = [Individual(parsed("w * act"), 0.0), Individual(parsed("g * obs"), 1.0)]
    children = [written(Breeding(("macs",)).child(population, rng)[0]) for _ in range(200)]
    good = sum(("w" in text.split() or "act" in text) and "g" not in text.split() and "obs" not in text for text in children)
    bad = sum(("g" in text.split() or "obs" in text) and "w" not in text.split() and "act" not in text for text in children)
    assert good > 3 * bad


# The search


def test_known_formulas_come_first():
    """Each is measured once; that of the start's scorer is a duplicate of the start and costs nothing. Then formulas are bred."""
    rounds = uninterrupted().rounds
    assert [entry.formula for entry in rounds[: len(KNOWN) + 1]] == [None, *KNOWN]
    assert (rounds[1].verdict, rounds[1].duplicate_of) == ("duplicate", 0)
    assert len({entry.formula for entry in rounds}) == len(rounds)
    assert all(entry.ranking.notes[0] == f"Formula: {entry.formula}" for entry in rounds[1:])


def test_the_budgets_hold():
    """As many measurements as were allowed, and no plan above its target."""
    result = uninterrupted()
    assert result.measurements == 12
    assert result.stopped == "budget"
    assert all(entry.macs <= result.plan.target_macs for entry in result.rounds)
    assert result.loss == min(entry.loss for entry in result.rounds if entry.loss is not None) <= result.start_loss


def test_a_formula_makes_the_network_again():
    """The best formula as a scorer gives the best round's plan, on the batches that were not held out."""
    result, network = uninterrupted(), subject()
    assert result.formula == result.best_round.formula
    again = pp.prune(
        network.model, network.example_inputs, 0.6, FormulaScorer(result.formula), batches=network.batches[:2], loss_fn=network.loss_fn
    )
    assert again.plan.kept == result.plan.kept
    assert result.to_dict()["formula"] == result.formula


def test_a_search_repeats_and_depends_on_its_seed():
    """The same seed gives the same formulas; another one gives others after the known ones."""
    assert outline(run_search().rounds) == outline(uninterrupted().rounds)
    other = [entry.formula for entry in run_search(seed=1, rounds=9).rounds]
    assert other[1:] != [entry.formula for entry in uninterrupted().rounds][1 : len(other)]


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_search_in_parts_is_the_search_in_one(tmp_path, stop):
    """Resumed after any round, also inside of the bred ones, it makes the same rounds and the same network."""
    memory = tmp_path / "m.jsonl"
    run_search(rounds=stop, memory=memory)
    result = run_search(memory=memory, resume=True)
    assert outline(result.rounds) == outline(uninterrupted().rounds)
    assert result.plan == uninterrupted().plan


def test_a_batch_does_not_depend_on_the_processes():
    """Formulas of a batch differ, and are the same for one process and for two."""
    one, two = (run_search(rounds=9, batch=3, jobs=jobs) for jobs in (1, 2))
    assert outline(one.rounds) == outline(two.rounds)
    assert len({entry.formula for entry in one.rounds}) == len(one.rounds)


def test_a_memory_of_other_settings_is_refused(tmp_path):
    """Features, known formulas and breeding are a part of the proposer's name."""
    run_search(rounds=1, memory=tmp_path / "m.jsonl")
    for other in (FormulaProposer(breed=False), FormulaProposer(known=("w",)), FormulaProposer(features=("w", "g"))):
        with pytest.raises(JournalError, match="proposer"):
            run_search(other, rounds=1, memory=tmp_path / "m.jsonl", resume=True)


def test_features_can_be_chosen():
    """Only these are read, and known formulas with others are left out."""
    result = run_search(FormulaProposer(features=("w", "wg", "macs"), breed=False), rounds=6)
    formulas = [entry.formula for entry in result.rounds[1:]]
    assert formulas[:2] == ["wg", "w"]
    assert all(set(FormulaScorer(text).needs) <= {"weights", "gradients"} and "act" not in text for text in formulas)
    assert all("chance" in entry.ranking.notes[1] for entry in result.rounds[3:])


def test_what_cannot_be_searched_is_an_error():
    """Depth has no channels to score; unknown features and known formulas that are none are named."""
    with pytest.raises(InputError, match="mode 'depth'"):
        run_search(mode="depth", rounds=2)
    with pytest.raises(FormulaError, match="found v"):
        FormulaProposer(features=("v",))
    with pytest.raises(FormulaError, match="unknown name"):
        FormulaProposer(known=("v * w",))
    assert proposer_named("formula") == FormulaProposer()
    assert proposer_named("formula=w").name == "formula"


def test_whole_blocks_still_leave_by_the_start():
    """In mode both, formulas score channels, and the start's removal scores decide the blocks."""
    result = run_search(rounds=3, mode="both")
    assert all(entry.ranking.removal_scores == result.rounds[0].ranking.removal_scores for entry in result.rounds)


# A language model


def asked(answer, **changed):
    """Search with a server that answers; return the result and the prompts."""
    with FakeLLMServer(answer=answer) as server:
        writer = find("local", options(server, "local", **changed))
        result = run_search(FormulaProposer(known=("wg", "w"), writer=writer), rounds=8)
        return result, [str(request.turns[-1]["content"]) for request in server.requests]


def test_a_language_model_writes_formulas():
    """In every third round it sees features, operators and the measured formulas with their losses, and its formula is measured."""
    result, prompts = asked(lambda request: json.dumps({"formula": f"wg + {len(request.prompt)} * (w)", "reason": "mix"}))
    own = [entry for entry in result.rounds if any("Formula of 'local': mix" in note for note in entry.ranking.notes)]
    assert [entry.index for entry in own] == [3, 6, 9][: len(own)]
    assert len(own) == len(prompts) >= 2
    assert own[0].formula == f"wg + {len(prompts[0])} * w"
    assert f"{result.rounds[2].loss:.6g}  w\n" in prompts[0]
    assert f"{own[0].loss:.6g}  {own[0].formula}" in prompts[1]
    assert "norm(a): brought to [0, 1]" in prompts[0]
    assert "act: root mean square" in prompts[0]
    assert "blocks.0" not in prompts[0]


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("__import__('os').system('true')", "unexpected character"),
        ("(" * 900, "levels of parentheses"),
        ("v * w", "unknown name 'v'"),
        ("wg", "was measured before"),
        ("3 - 1", "all the same"),
        ("square(square(square(square(square(square(square(square(square(square(square(w + 9)))))))))))", "not finite"),
    ],
)
def test_an_answer_that_is_no_formula_is_dropped_and_recorded(tmp_path, formula, reason):
    """The round has a bred formula and a note with the reason; nothing is executed, and the search goes on."""
    result, prompts = asked(lambda request: json.dumps({"formula": formula, "reason": ""}), cache=tmp_path / "answers")
    entry = result.rounds[3]
    assert any("was dropped" in note and reason in note for note in entry.ranking.notes)
    assert "Formula by" in entry.ranking.notes[-1]
    assert result.measurements == 8
    if reason not in ("all the same", "not finite"):
        assert reason in prompts[1], "the second question has the problem of the first answer"
        assert "Answer once more" in prompts[1]


def test_recorded_formulas_are_replayed_without_a_server(tmp_path):
    """The same rounds come from the cache alone, and a memory that has them needs not even the cache."""
    cache_, memory = tmp_path / "answers", tmp_path / "m.jsonl"

    def answer(request: ReceivedRequest) -> str:
        return json.dumps({"formula": f"act + {len(request.prompt)}" if len(request.prompt) % 2 else "no formula", "reason": "r"})

    with FakeLLMServer(answer=answer) as server:
        url = options(server, "local")
        first = run_search(FormulaProposer(writer=find("local", {**url, "cache": cache_})), memory=memory)
    replayed = run_search(FormulaProposer(writer=find("local", {**url, "cache": cache_, "cache_mode": "replay-only"})))
    assert outline(replayed.rounds) == outline(first.rounds)
    again = run_search(FormulaProposer(writer=find("local", url)), memory=memory, resume=True)
    assert outline(again.rounds) == outline(first.rounds)


def test_the_command_finds_a_formula_and_uses_it(tmp_path, monkeypatch):
    """`search` prints and stores it, `prune` takes it, and --writer belongs to formulas."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK + MEASURED)
    given = ("search", "--model", "net.py", "--proposer", "formula", "--rounds", 8, "--out", "best")
    shown = succeed(*given).stdout
    data = json.loads(succeed(*given, "--memory", "other.jsonl", "--json").stdout)
    kept = [json.loads(line)["round"]["formula"] for line in (tmp_path / "net-search.jsonl").read_text().splitlines()[2:]]
    assert kept == [entry["formula"] for entry in data["rounds"]]
    best = data["formula"]
    assert best is None or f"The best formula is: {best}" in shown
    notes = json.loads((tmp_path / "best" / "ranking.json").read_text())["notes"]
    assert best is None or data["best_round"] == 0 or f"Formula: {best}" in notes
    succeed("prune", "--model", "net.py", "--scorer", f"formula={best or 'w'}", "--out", "pruned")
    assert "uses none" in fail("search", "--model", "net.py", "--proposer", "random", "--writer", "local", "--llm-model", "m")
    assert "needs --llm-model" in fail("search", "--model", "net.py", "--proposer", "formula", "--writer", "local")
    assert "uses no language model" in fail("search", "--model", "net.py", "--proposer", "formula", "--llm-model", "m")
