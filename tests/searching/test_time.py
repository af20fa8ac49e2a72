"""Search within a budget of time: one limit for all rounds, corrected by measuring, and the best network measured at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import MEASURED, NETWORK, succeed
from torch.nn import functional

import proxyprune as pp
from proxyprune.errors import JournalError, TargetError
from proxyprune.searching import SearchResult
from tests.measuring.test_network_times import Net

TIMING = pp.Timing(threads=1, batch=4, repeats=3)
INPUTS = torch.zeros(1, 3, 16, 16)


pytestmark = pytest.mark.usefixtures("own_tables")


def run_search(memory: Path | None = None, **changed: object) -> SearchResult:
    """Search for the best of three networks with 70 % of the time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net(96).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 5, (8,), generator=generator)) for _ in range(3)]
    given = {"rounds": 3, "timing": TIMING, "batch": 2, "metric": "time", **changed}
    target = given.pop("target", 0.7)
    return pp.search(model, INPUTS, target, "random", batches=batches, loss_fn=loss, memory=memory, **given)


def loss(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def limits(result: SearchResult) -> set[int]:
    """Return the limits of predicted time of all plans."""
    return {entry.plan.time.target_nanoseconds for entry in result.rounds if entry.plan is not None}


@pytest.fixture(scope="module")
def searched(tmp_path_factory, own_tables) -> tuple[SearchResult, Path]:
    """Return a finished search, and its memory."""
    memory = tmp_path_factory.mktemp("search") / "memory.jsonl"
    return run_search(memory), memory


def test_all_rounds_have_one_limit_and_the_best_is_measured(searched):
    """The limit is in the memory; the plan has the target as it was asked, the prediction and the measurement."""
    result, memory = searched
    start = json.loads(memory.read_text().splitlines()[1])
    assert limits(result) == {start["time_limit_nanoseconds"]}
    assert all(entry.plan.time.nanoseconds <= start["time_limit_nanoseconds"] for entry in result.rounds)
    assert result.plan.target == 0.7
    assert result.plan.metric == "time"
    assert result.report.time == result.plan.time.measured
    assert result.report.time.target_ratio == 0.7
    assert result.report.time.settings["batch"] == 4


def test_a_memory_keeps_the_limit(searched, tmp_path):
    """A search that goes on, in two processes, has the limit and the rounds of the first, and other timing settings are another search."""
    (whole, memory), copy = searched, tmp_path / "copy.jsonl"
    copy.write_text("".join(line + "\n" for line in memory.read_text().splitlines()[:3]))
    again = run_search(copy, resume=True, jobs=2)
    assert limits(again) == limits(whole)
    assert [(entry.key, entry.loss) for entry in again.rounds] == [(entry.key, entry.loss) for entry in whole.rounds]
    with pytest.raises(JournalError, match="timing"):
        run_search(copy, resume=True, timing=replace(TIMING, batch=2))


def test_other_budgets_hold_as_well():
    """Parameters are counted exactly while the limit of time is corrected."""
    result = run_search(target={"params": 0.6, "time": 0.8})
    assert result.plan.params <= 0.6 * result.plan.base_params
    assert result.plan.target == {"params": 0.6, "time": 0.8}
    assert len(limits(result)) == 1


def test_a_time_out_of_reach_is_an_error():
    """Before any round is measured."""
    with pytest.raises(TargetError, match="best reachable"):
        run_search(target="10ns")


def test_the_command_searches_within_a_time(tmp_path, monkeypatch):
    """The saved report has the measured time, and the terminal shows it."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text((NETWORK + MEASURED).replace("Net(16)", "Net(96)").replace("8, 8)", "16, 16)"))
    given = ("search", "--model", "net.py", "--metric", "time", "--target", "0.8", "--rounds", "2", "--proposer", "random")
    shown = succeed(*given, "--time-threads", "1", "--time-repeats", "3", "--out", "found").stdout
    assert "Target: 80.0%" in " ".join(shown.split())
    assert json.loads(Path("found/report.json").read_text())["time"]["target_ratio"] == 0.8
