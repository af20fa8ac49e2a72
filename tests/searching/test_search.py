"""Search: what it measures, what it remembers, and that a killed one ends like one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from subject import subject

import proxyprune as pp
from proxyprune import ScoringContext
from proxyprune.errors import InputError, JournalError, LLMInvalidAnswerError, MissingNeedError, ScoringError, TargetError, UnknownNameError
from proxyprune.scoring import Ranking
from proxyprune.searching import History, Round, proposer_named
from proxyprune.searching.proposer import LEVERAGE
from proxyprune.searching.proposers.by_name import PROPOSERS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
sys.path.insert(0, 'tests/shared')
import torch
torch.set_num_threads(1)
import proxyprune as pp
from subject import subject
n = subject()
seen = []
def progress(entry):
    seen.append(entry)
    time.sleep(3600 if len(seen) == 5 else 0)  # it is killed before or here
r = pp.search(n.model, n.example_inputs, 0.6, sys.argv[1], rounds=int(sys.argv[3]), memory=sys.argv[2], resume=True,
              recovery=pp.Recovery(2, 1e-2), batches=n.batches, loss_fn=n.loss_fn, progress=progress)
print(r.loss)
"""


def run_search(proposer="evolution", target=0.6, **changed):
    network = subject()
    given = {"rounds": 5, "batches": network.batches, "loss_fn": network.loss_fn, **changed}
    return pp.search(network.model, network.example_inputs, target, proposer, **given)


def outline(rounds) -> list[tuple]:
    return [(entry.index, entry.key, entry.loss, entry.verdict, dict(entry.ranking.scores)) for entry in rounds]


@cache
def uninterrupted(proposer: str):
    return run_search(proposer, rounds=8, recovery=pp.Recovery(2, 1e-2))


@pytest.mark.parametrize("proposer", [*PROPOSERS, "proxyprune:random"])
def test_every_proposer_gets_the_same_number_of_measurements(proposer):
    """All begin with the same one-shot ranking (a scorer with its own), and the best round is the smallest loss."""
    result = uninterrupted(proposer)
    assert result.measurements == 8
    assert result.stopped == "budget"
    assert result.rounds[0].verdict == "start"
    assert result.rounds[0].ranking.scorer == ("random" if ":" in proposer else "taylor")
    losses = [entry.loss for entry in result.rounds if entry.measured]
    assert result.loss == min(losses) <= result.start_loss
    assert all(entry.macs <= result.plan.target_macs for entry in result.rounds if entry.plan is not None)
    assert [entry.verdict == "better" for entry in result.rounds if entry.verdict in ("better", "worse")] == [
        entry.loss < min(one.loss for one in result.rounds[: entry.index] if one.loss is not None)
        for entry in result.rounds
        if entry.verdict in ("better", "worse")
    ]


@pytest.mark.parametrize("proposer", [name for name in PROPOSERS if name != "formula"])  # begins with known formulas, whatever the seed
def test_a_search_repeats_and_depends_on_its_seed(proposer):
    """The same seed gives the same rounds; another one does not."""
    again = run_search(proposer, rounds=3)
    assert outline(again.rounds) == outline(run_search(proposer, rounds=3).rounds)
    assert outline(run_search(proposer, rounds=3, seed=1).rounds)[1:] != outline(again.rounds)[1:]


def test_the_callers_model_and_generators_stay_as_they_were():
    """A search with recovery trains copies only."""
    network = subject()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    generator = torch.get_rng_state()
    gradient = network.model.stem.weight.grad.clone()
    pp.search(
        network.model,
        network.example_inputs,
        0.6,
        "random",
        rounds=2,
        recovery=pp.Recovery(2),
        batches=network.batches,
        loss_fn=network.loss_fn,
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in network.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(network.model.stem.weight.grad, gradient)


def test_the_result_is_saved_and_loaded_like_that_of_prune(tmp_path):
    """`pp.save` takes it, and the loaded network has the recovered weights and the loss that the search reports."""
    from proxyprune.measuring.held_out import Data, held_out_loss

    result = uninterrupted("evolution")
    pp.save(result, tmp_path / "best")
    loaded = pp.load(tmp_path / "best", lambda: subject().model)
    network = subject()
    assert held_out_loss(loaded, Data.of(network.batches, None, network.loss_fn), seed=0) == pytest.approx(result.loss, rel=1e-5)


def test_the_memory_holds_what_was_measured(tmp_path):
    """Each line of the file is a round with ranking, widths, MACs, loss, verdict and seconds."""
    result = run_search("random", memory=tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "search"
    assert lines[0]["fingerprint"] == result.graph.fingerprint
    rounds = [line["round"] for line in lines[2:]]
    assert [entry["loss"] for entry in rounds] == [entry.loss for entry in result.rounds]
    assert all({"ranking", "widths", "macs", "verdict", "seconds"} <= entry.keys() for entry in rounds)
    assert outline(map(Round.from_dict, rounds)) == outline(result.rounds)


@pytest.mark.parametrize(("proposer", "stop"), [("random", 1), ("evolution", 3), ("coordinate", 6)])
def test_a_search_in_parts_is_the_search_in_one(tmp_path, proposer, stop):
    """Stopped after any number of rounds and resumed, it makes the same rounds."""
    settings = {"recovery": pp.Recovery(2, 1e-2), "memory": tmp_path / "m.jsonl"}
    run_search(proposer, rounds=stop, **settings)
    result = run_search(proposer, rounds=8, resume=True, **settings)
    assert outline(result.rounds) == outline(uninterrupted(proposer).rounds)
    assert result.plan == uninterrupted(proposer).plan


def test_a_killed_search_ends_like_one_that_was_not(tmp_path):
    """SIGKILL in the middle, half a line at the end: nothing measured is lost, and the result is the same, weights included."""
    memory = tmp_path / "m.jsonl"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "evolution", str(memory), "8"], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and (not memory.exists() or memory.read_bytes().count(b"\n") < 5):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    lines = memory.read_bytes()
    measured = lines.count(b"\n") - 2
    assert 3 <= measured < 8
    with memory.open("ab") as file:
        file.write(b'{"what": "round", "round": {"index": 3, "rank')
    seen = []
    result = run_search("evolution", rounds=8, recovery=pp.Recovery(2, 1e-2), memory=memory, resume=True, progress=seen.append)
    assert memory.read_bytes().startswith(lines[: lines.rfind(b"\n") + 1])
    expected = uninterrupted("evolution")
    assert outline(result.rounds) == outline(expected.rounds)
    assert outline(seen) == outline(expected.rounds)
    assert all(torch.equal(tensor, expected.model.state_dict()[name]) for name, tensor in result.model.state_dict().items())


def test_a_finished_search_is_read_not_run_again(tmp_path):
    """Resuming it measures nothing: the file does not grow."""
    memory = tmp_path / "m.jsonl"
    run_search("random", rounds=3, memory=memory)
    content = memory.read_bytes()
    assert run_search("random", rounds=3, memory=memory, resume=True).measurements == 3
    assert memory.read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": 0.5}, "target was 0.6, now 0.5"),
        ({"seed": 4}, "seed was 0, now 4"),
        ({"recovery": pp.Recovery(1)}, "recovery_steps was 0, now 1"),
        ({"mode": "both"}, "mode"),
        ({"keep": ("stem",)}, "keep"),
        ({"floors": {"stem": 0.5}}, "floors"),
        ({"start": "magnitude"}, 'start was "taylor", now "magnitude"'),
        ({"proposer": "coordinate"}, "proposer"),
        ({"held_out": subject().batches[:1]}, "data"),
    ],
)
def test_a_memory_of_another_search_is_refused(tmp_path, changed, message):
    """Whatever the measurements depend on must be the same; the message says what is not."""
    memory = tmp_path / "m.jsonl"
    run_search("random", rounds=1, memory=memory)
    with pytest.raises(JournalError, match=message):
        run_search(**{"proposer": "random", "rounds": 2, "memory": memory, "resume": True, **changed})


@pytest.mark.parametrize("empty", [None, {}])
def test_a_memory_without_bounds_goes_on(tmp_path, empty):
    """Earlier versions wrote no bounds as null or as an empty object, and both are no bounds."""
    memory = tmp_path / "m.jsonl"
    run_search("random", rounds=1, memory=memory)
    header, *lines = memory.read_text().splitlines(keepends=True)
    memory.write_text(json.dumps(json.loads(header) | {"floors": empty, "ceilings": empty}) + "\n" + "".join(lines))
    assert run_search("random", rounds=1, memory=memory, resume=True).measurements == 1


def test_one_keep_pattern_is_one_pattern():
    """A text is not read letter by letter."""
    assert run_search("random", rounds=1, keep="stem").plan.options["keep"] == ["stem"]


def test_a_memory_of_another_loss_is_refused(tmp_path):
    """The unpruned network's loss gives a changed loss function away."""
    memory, network = tmp_path / "m.jsonl", subject()
    run_search("random", rounds=1, memory=memory)
    with pytest.raises(JournalError, match="another loss"):
        run_search("random", rounds=2, memory=memory, resume=True, loss_fn=lambda model, batch: 2.0 * network.loss_fn(model, batch))


def test_a_memory_of_other_weights_is_refused(tmp_path):
    """The same structure with other weights is another network."""
    memory, network = tmp_path / "m.jsonl", subject()
    run_search("random", rounds=1, memory=memory)
    with torch.no_grad():
        network.model.stem.bias += 1.0
    with pytest.raises(JournalError, match="weights"):
        pp.search(
            network.model, network.example_inputs, 0.6, "random", rounds=2, memory=memory, resume=True, batches=network.batches,
            loss_fn=network.loss_fn,
        )  # fmt: skip


def test_rounds_in_a_memory_are_not_continued_unless_asked_for(tmp_path):
    """A new search does not mix with an old one."""
    run_search("random", rounds=1, memory=tmp_path / "m.jsonl")
    with pytest.raises(JournalError, match="Resume it"):
        run_search("random", rounds=1, memory=tmp_path / "m.jsonl")


@dataclass(frozen=True)
class Queue:
    """Proposes fixed scores, one after the other; a real proposer without any cleverness."""

    values: tuple[float, ...]
    name: str = "queue"
    repeats: int = 5

    def propose(self, history: History) -> Ranking:
        """Return the start with the first block's score replaced."""
        first = next(iter(history.start.scores))
        value = self.values[(len(history.rounds) - 1) % len(self.values)]
        return history.ranking({**history.start.scores, first: value}, self.name, "From a queue.")


def test_the_same_plan_is_not_measured_twice():
    """Duplicates are listed, name their original, cost no measurement, and end the search when nothing else comes."""
    result = run_search(Queue((0.9, 0.0, 0.9)), rounds=30)
    duplicates = [entry for entry in result.rounds if entry.verdict == "duplicate"]
    assert duplicates
    for entry in duplicates:
        original = result.rounds[entry.duplicate_of]
        assert (entry.key, entry.loss) == (original.key, original.loss)
        assert original.measured
    keys = [entry.key for entry in result.rounds if entry.measured]
    assert len(set(keys)) == len(keys) == result.measurements < 30
    assert result.stopped == "repeats"
    assert result.to_dict()["duplicates"] == len(duplicates)


def test_a_search_without_improvement_stops():
    """Patience counts measurements since the last improvement."""
    result = run_search("random", target=0.7, rounds=30, patience=2)
    measured = [entry for entry in result.rounds if entry.measured]
    assert result.stopped == "patience"
    assert not any(entry.accepted for entry in measured[-2:])
    assert measured[-3].accepted
    assert len(measured) < 30


@dataclass(frozen=True)
class Learner:
    """A scorer with memory: repeats the best attempt and moves one block, and notes what it was told."""

    told: list = field(default_factory=list, compare=False)
    name: str = "learner"
    needs: frozenset[str] = frozenset()

    def score(self, graph: pp.ModelGraph, context: ScoringContext) -> Ranking:
        """Return the best attempt with one score changed; without attempts, all alike."""
        self.told.append(context.brief)
        attempts = context.brief.attempts
        scores = dict.fromkeys((block.id for block in graph.blocks), 0.5)
        if attempts:
            scores.update(min(attempts, key=lambda attempt: attempt.loss).scores)
            block = list(scores)[len(attempts) % len(scores)]
            scores[block] = 1.0 - scores[block] * 0.9
        return Ranking(scores, self.name, seed=context.seed)


@dataclass(frozen=True)
class Moody(Learner):
    """Answers every second time."""

    def score(self, graph: pp.ModelGraph, context: ScoringContext) -> Ranking:
        """Return a ranking, or no valid answer."""
        ranking = super().score(graph, context)
        if len(self.told) % 2:
            return ranking
        raise LLMInvalidAnswerError("two blocks have no score")


def test_a_round_without_an_answer_fails_and_the_search_goes_on(tmp_path):
    """It counts as a measurement, says why, and is remembered; the best so far stays the best."""
    result = run_search(Moody(), start="taylor", rounds=5, memory=tmp_path / "memory.jsonl")
    failed = [entry for entry in result.rounds if entry.verdict == "failed"]
    assert failed
    assert result.measurements == 5
    assert all("two blocks have no score" in entry.error for entry in failed)
    again = run_search(Moody(), start="taylor", rounds=5, memory=tmp_path / "memory.jsonl", resume=True)
    assert outline(again.rounds) == outline(result.rounds)


def test_a_scorer_of_blocks_borrows_the_channels_of_the_start():
    """Scores equal to the start's leave its channels alone; the channels of a block that gained importance gain with it."""
    network = subject()
    graph = pp.trace(network.model, network.example_inputs)
    start = pp.score(graph, "taylor", model=network.model, batches=network.batches, loss_fn=network.loss_fn)
    history = History(graph, ScoringContext(), "width", start, ())
    same = history.ranking(start.scores, "nobody", "")
    assert same.channel_scores == start.channel_scores
    assert same.comparable_channels
    group = next(group for group in history.graph.prunable if len(group.blocks) == 1)
    raised = history.ranking({**start.scores, group.blocks[0]: 1.0}, "nobody", "")
    gained = np.array(raised.channel_scores[group.id]) / np.array(start.channel_scores[group.id])
    assert gained == pytest.approx(np.full(group.atoms, LEVERAGE ** (1.0 - start.scores[group.blocks[0]])), rel=1e-4)


def test_a_scorer_is_told_what_was_tried():
    """Its brief has the goal, the unpruned loss and every measured attempt, oldest first."""
    learner = Learner()
    result = run_search(learner, rounds=4)
    assert [len(brief.attempts) for brief in learner.told][:2] == [0, 1]
    last = learner.told[-1]
    assert (last.target, last.metric, last.mode) == (0.6, "macs", "width")
    assert last.base_loss == result.base_loss
    measured = [entry for entry in result.rounds if entry.measured][: len(last.attempts)]
    assert [(a.loss, a.macs, a.accepted) for a in last.attempts] == [(e.loss, e.macs, e.accepted) for e in measured]
    assert all(0.0 <= share <= 1.0 for attempt in last.attempts for share in attempt.kept.values())
    assert any(share < 1.0 for share in last.attempts[0].kept.values())


def test_coordinate_descent_starts_from_the_best():
    """Each proposal differs from the best ranking of its time in one block; a move that failed is rolled back."""
    rounds = uninterrupted("coordinate").rounds
    moved = []
    for entry in rounds[1:]:
        before = [one for one in rounds[: entry.index] if one.measured and one.loss is not None]
        best = min(before, key=lambda one: one.loss).ranking.scores
        changed = [block for block, value in entry.ranking.scores.items() if value != best[block]]
        assert len(changed) == 1 or (not changed and entry.verdict == "duplicate"), "a score at its end stays there"
        moved += changed
    assert len(set(moved)) > 1, "only one block was ever moved"


def test_a_failing_measurement_is_a_round_and_the_search_goes_on():
    """A loss that is not finite counts as a measurement, is never the best, and is told as the worst."""
    network = subject()
    widths = []

    def loss_fn(model, batch):
        widths.append(model.stem.out_channels)
        loss = network.loss_fn(model, batch)
        return loss * float("nan") if len(widths) in (5, 6) else loss

    result = run_search("evolution", rounds=5, loss_fn=loss_fn, start="magnitude")
    failed = [entry for entry in result.rounds if entry.verdict == "failed"]
    assert failed
    assert all(entry.loss is None and "not finite" in entry.error and entry.measured for entry in failed)
    assert result.best_round not in failed
    assert result.measurements == 5


def test_depth_is_searched_too():
    """In mode depth each proposal decides which blocks leave: the ones it ranks lowest, and no width changes."""
    result = run_search("random", target=0.9, mode="depth", rounds=2)
    removable = [block.id for block in result.graph.blocks if block.removable]
    assert len(removable) == 4
    for entry in result.rounds:
        importance = entry.ranking.removal_scores or entry.ranking.scores
        lowest = sorted(removable, key=lambda block: importance[block])
        assert 0 < len(entry.plan.removed_blocks) < 4
        assert set(entry.plan.removed_blocks) == set(lowest[: len(entry.plan.removed_blocks)])
        assert not entry.plan.kept
        assert entry.plan.macs <= entry.plan.target_macs
    assert len({entry.plan.removed_blocks for entry in result.rounds}) == 2, "both rounds cut the same, so nothing was proposed"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rounds": 0}, InputError, "rounds"),
        ({"patience": 0}, InputError, "patience"),
        ({"proposer": "evolutoin"}, UnknownNameError, "evolution"),
        ({"proposer": 3}, InputError, "Expected a proposer"),
        ({"batches": None}, MissingNeedError, "batches"),
        ({"target": 0.0001}, TargetError, "cannot be reached"),
        ({"loss_fn": lambda model, batch: torch.tensor(float("nan"))}, ScoringError, "unpruned model is not finite"),
    ],
)
def test_what_cannot_be_searched_is_refused(given, error, message):
    """Each mistake has its message."""
    with pytest.raises(error, match=message):
        run_search(**given)


def test_names_lead_to_proposers():
    """A proposer's own name comes first; any scorer is a proposer with memory."""
    assert proposer_named("random").name == "random"
    assert proposer_named("magnitude").name == "magnitude"
    assert proposer_named("evolution").name.startswith("evolution(")


def test_the_plot_is_drawn(tmp_path):
    """A picture comes out, the same one for the same search."""
    from proxyprune.plots import plot_search

    plot_search(uninterrupted("coordinate"), tmp_path / "a.svg")
    plot_search(uninterrupted("coordinate"), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "best so far" in (tmp_path / "a.svg").read_text() or (tmp_path / "a.svg").stat().st_size > 5000
