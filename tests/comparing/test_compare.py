"""Comparing scorers: fair cells, honest errors, and a journal that a kill does not lose."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from subject import subject

import proxyprune as pp
from proxyprune.comparing import Case
from proxyprune.comparing.run_comparison import calibration_of, ranking_tau
from proxyprune.comparing.values import Spread
from proxyprune.errors import InputError, JournalError, LLMTimeoutError
from proxyprune.scoring import Ranking

CASES = (Case("width", 0.6), Case("depth", 0.85))


def run(scorers=("magnitude", "ablation"), **changed):
    network = subject()
    given = {"cases": CASES, "seeds": (0, 1), "recovery": pp.Recovery(2, 1e-2), "batches": network.batches, "loss_fn": network.loss_fn}
    return pp.compare(network.model, network.example_inputs, scorers, **{**given, **changed})


@cache
def comparison():
    return run()


def test_every_scorer_gets_every_cell():
    """Scorers x cases x seeds, in that order, each within its budget and measured before and after recovery."""
    cells = comparison().cells
    assert [(c.scorer, c.mode, c.target, c.seed) for c in cells] == [
        (scorer, case.mode, case.target, seed) for scorer in ("magnitude", "ablation") for case in CASES for seed in (0, 1)
    ]
    for cell in cells:
        assert cell.error is None
        assert cell.macs <= float(cell.target) * comparison().base_macs
        assert cell.loss > 0
        assert cell.recovered_loss > 0
    assert [cell.seed for cell in comparison().base] == [0, 1]
    assert all(cell.macs == comparison().base_macs for cell in comparison().base)


def test_the_oracle_agrees_with_itself_on_the_same_data():
    """Ablation asked with the held-out batches has tau 1 to the oracle; on other batches it has less, and money is None."""
    network = subject()
    same = run(("ablation",), batches=network.batches[:2], held_out=network.batches[:2], seeds=(0,), cases=CASES[:1])
    assert same.scorings[0].tau == pytest.approx(1.0)
    assert all(scoring.dollars is None and scoring.seconds > 0 for scoring in comparison().scorings)


def test_tau_in_numbers():
    """Equal orders give 1, reversed ones -1, and a constant ranking no figure at all."""
    scores = {"a": 0.1, "b": 0.5, "c": 0.9}
    assert ranking_tau(scores, scores) == pytest.approx(1.0)
    assert ranking_tau(scores, {key: -value for key, value in scores.items()}) == pytest.approx(-1.0)
    assert ranking_tau(dict.fromkeys(scores, 0.5), scores) is None


def test_calibration_is_drawn_by_seed():
    """A scorer sees so many batches, in their order, others for another seed."""
    batches = list(range(20))
    drawn = [calibration_of(batches, 5, seed) for seed in range(4)]
    assert all(len(set(found)) == 5 and list(found) == sorted(found) for found in drawn)
    assert len(set(drawn)) > 1
    assert calibration_of(batches, 5, 1) == drawn[1]
    assert calibration_of(batches, None, 0) == tuple(batches)


@dataclass(frozen=True)
class Failing:
    """A scorer that is never answered."""

    name: str = "failing"
    needs: frozenset[str] = frozenset()

    def score(self, graph, context):
        """Raise."""
        raise LLMTimeoutError("Nobody answered.")


@dataclass(frozen=True)
class Event:
    """What a scorer reports about its spending."""

    spent_usd: float | None


@dataclass(frozen=True)
class Costly:
    """A scorer that says what it spends, and doubts itself."""

    observer: object = field(default=None, compare=False)
    name: str = "costly"
    needs: frozenset[str] = frozenset()

    def score(self, graph, context):
        """Alternate scores."""
        for spent in (0.25, None, 0.5):
            self.observer(Event(spent))
        return Ranking({block.id: index % 2 / 2 for index, block in enumerate(graph.blocks)}, self.name, unreliable="It guesses.")


def test_what_fails_is_a_cell_and_the_others_go_on():
    """A scorer without a ranking and a target out of reach are told; a self-declared unreliable ranking is measured all the same."""
    heard = []
    result = run(
        {"failing": Failing(), "costly": Costly(heard.append), "random": "random"}, cases=(*CASES, Case("depth", 0.01)), seeds=(0,)
    )
    by_name = {(summary.scorer, str(summary.case)): summary for summary in result.summary()}
    assert any("Nobody answered" in error for error in by_name["failing", "width 0.6"].errors)
    assert by_name["failing", "width 0.6"].loss is None
    assert by_name["costly", "width 0.6"].loss.count == 1
    assert by_name["costly", "width 0.6"].dollars == 0.75
    assert len(heard) == 3
    assert "cannot be reached" in by_name["random", "depth 0.01"].errors[0]
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_comparison_goes_on_where_it_was_killed(tmp_path):
    """With half a line at the end, measured cells are read and only the others are measured; the result is the same."""
    whole = run(journal=tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:8]) + lines[8][:20])
    said = []
    resumed = run(journal=tmp_path / "cut.jsonl", resume=True, progress=said.append)
    assert len(said) == len(lines) - 8

    def figures(result):
        return [(c.scorer, c.loss, c.recovered_loss, c.macs) for c in result.cells]

    assert figures(resumed) == figures(whole) == figures(comparison())
    with pytest.raises(JournalError, match="recovery_steps"):
        run(journal=tmp_path / "cut.jsonl", resume=True, recovery=None)
    with pytest.raises(JournalError, match="Resume it"):
        run(journal=tmp_path / "cut.jsonl")


def test_the_journal_serves_more_scorers_later(tmp_path):
    """What was measured is not measured again when a scorer is added."""
    run(("magnitude",), journal=tmp_path / "j", seeds=(0,))
    said = []
    run(("magnitude", "random"), journal=tmp_path / "j", resume=True, seeds=(0,), progress=said.append)
    assert said
    assert all("random" in text for text in said)


def test_what_failed_is_tried_again(tmp_path):
    """A scorer whose server was away the first time gets its cells when the comparison is resumed."""
    assert run({"sometimes": Failing()}, journal=tmp_path / "j", seeds=(0,), cases=CASES[:1]).cells[0].error is not None
    again = run({"sometimes": "random"}, journal=tmp_path / "j", resume=True, seeds=(0,), cases=CASES[:1])
    assert again.cells[0].error is None
    assert again.scorings[0].error is None


def test_quality_is_the_callers_own_measure():
    """It is taken from the network as it is at the end of the cell."""
    seen = []

    def quality(model):
        seen.append(sum(parameter.numel() for parameter in model.parameters()))
        return 0.5

    result = run(("magnitude",), seeds=(0,), cases=CASES[:1], quality=quality)
    assert result.cells[0].quality == 0.5
    assert seen[-1] == result.cells[0].params < seen[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scorers": "magnitude"}, "Expected a list of scorers"),
        ({"scorers": ()}, "no scorer to compare"),
        ({"scorers": ("random", "random")}, "listed twice"),
        ({"cases": (Case("wide", 0.5),)}, "Unknown mode"),
        ({"cases": (CASES[0], Case("width", "half"))}, "Cannot read the target"),
        ({"allocation": "fair"}, "Unknown allocation"),
        ({"cases": ()}, "at least one case"),
        ({"seeds": (1, 1)}, "listed twice"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    """Each mistake has its message."""
    with pytest.raises(InputError, match=message):
        run(**given)


def quick(**changed):
    """One scorer, one case, no recovery."""
    return run(("taylor",), **{"cases": CASES[:1], "seeds": (0,), "recovery": None, **changed})


def test_limits_and_allocation_hold_in_every_cell():
    """Floors, ceilings and allocation mean what they mean in `prune`, and the settings of the comparison have them."""
    plain, network = quick().cells[0], subject()
    given = {"batches": network.batches[:2], "loss_fn": network.loss_fn}  # what scorers see of three batches, one of them held out
    for limits in ({"floors": {"blocks.2": 0.9}}, {"ceilings": {"blocks.0": 0.25}}, {"allocation": "blocks"}):
        result = quick(**limits)
        pruned = pp.prune(network.model, network.example_inputs, 0.6, "taylor", **limits, **given)
        assert result.cells[0].macs == pruned.plan.macs
        assert result.cells[0].loss != plain.loss
        assert result.settings.items() >= limits.items()
    assert "the floors hold" in quick(floors={"*": 1.0}).cells[0].error
    assert "channels" in run(("random",), cases=CASES[:1], seeds=(0,), allocation="channels").cells[0].error


def test_a_journal_from_before_there_were_limits_is_resumed(tmp_path):
    """A header without floors, ceilings and allocation is that of a comparison without them, and of no other."""
    path = tmp_path / "j"
    quick(journal=path)
    header, *lines = path.read_text().splitlines(keepends=True)
    new = json.loads(header)
    assert "allocation" not in new
    old = {key: value for key, value in new.items() if key not in ("floors", "ceilings")}
    path.write_text(json.dumps(old) + "\n" + "".join(lines))
    said = []
    quick(journal=path, resume=True, progress=said.append)
    assert not said
    for other in ({"floors": {"blocks.2": 0.9}}, {"ceilings": {"blocks.0": 0.25}}, {"allocation": "blocks"}):
        with pytest.raises(JournalError, match=next(iter(other))):
            quick(journal=path, resume=True, **other)


def test_patterns_from_a_generator_hold_for_every_case():
    """What can be read only once is read once."""
    both = run(("random",), seeds=(0,), recovery=None, keep=(name for name in ("stem", "blocks")))
    assert all("the keep patterns hold" in cell.error for cell in both.cells)


def test_spread_in_numbers():
    """Mean, extremes, deviation and count; None where there is nothing."""
    assert Spread.of([1.0, 3.0, None]) == Spread(2.0, 1.0, 3.0, pytest.approx(2**0.5), 2)
    assert Spread.of([None]) is None
    assert Spread.of([4.0]).deviation == 0.0


def test_the_plot_is_drawn(tmp_path):
    """A picture with a panel for each case comes out."""
    from proxyprune.plots import plot_comparison

    plot_comparison(comparison(), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_torch_pruning_is_an_arm_beside_the_scorers():
    """Its pruner meets the same budget by our counter and is measured like the others; in mode depth its cell has an error."""
    peers = ("torch-pruning-magnitude", "torch-pruning-taylor")
    found = run(("magnitude",), peers=peers, seeds=(0,))
    cells = {(cell.scorer, cell.mode): cell for cell in found.cells}
    for peer in peers:
        width, depth = cells[peer, "width"], cells[peer, "depth"]
        assert width.error is None
        assert 0.3 * found.base_macs < width.macs <= 0.6 * found.base_macs
        assert width.recovered_loss > 0
        assert "removes no blocks" in depth.error
    assert [summary.scorer for summary in found.summary()][:3] == ["magnitude", *peers]
    assert found.settings["peers"] == list(peers)
    with pytest.raises(InputError, match="expected one of torch-pruning-magnitude"):
        run(("magnitude",), peers=("nni",))


class Shuffle(torch.nn.Module):
    """Swap the halves of a hidden layer by reshaping; torch-pruning leaves an odd number of channels there."""

    def __init__(self):
        super().__init__()
        self.up, self.middle, self.down = torch.nn.Linear(6, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 5)

    def forward(self, x):
        halves = self.middle(self.up(x)).reshape(len(x), 2, -1)
        return self.down(halves.roll(1, 1).reshape(len(x), -1))


def test_a_peer_that_fails_is_a_cell_with_an_error():
    """Whatever the other library or its network raises is in the cell, and the scorers go on."""
    torch.manual_seed(0)
    batches = [(torch.randn(4, 6), torch.randint(0, 5, (4,))) for _ in range(2)]
    found = pp.compare(
        Shuffle(),
        torch.zeros(1, 6),
        ("magnitude",),
        cases=(Case("width", 0.6),),
        seeds=(0,),
        recovery=pp.Recovery(0),
        batches=batches,
        loss_fn=lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        peers=("torch-pruning-magnitude",),
    )
    ours, theirs = found.cells
    assert ours.error is None
    assert theirs.error is not None
    assert theirs.loss is None
