"""`scorer="auto"` takes the best of several cuts, measured on batches that no scorer saw."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from commands import MEASURED, NETWORK, fail, succeed
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import MissingNeedError
from proxyprune.reporting import write_report
from proxyprune.testing import residual_network


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def batches(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 6, generator=generator) for _ in range(count)]


EXAMPLE = torch.zeros(1, 6)


class TestChoice:
    """The table and the network agree."""

    @pytest.mark.parametrize("compensate", [True, False])
    def test_takes_the_best(self, compensate):
        """Without a loss, the chosen trial has the least output error, and it is that of the returned network."""
        model, given = network(), batches()
        result = pp.prune(model, EXAMPLE, 0.5, "auto", batches=given, compensate=compensate)
        trials = result.report.trials
        taken = next(trial for trial in trials.tried if trial.chosen)
        assert trials.measure == "relative output error"
        assert {trial.scorer for trial in trials.tried} == {"obs", "magnitude"}
        assert taken.value == min(trial.value for trial in trials.tried if trial.value is not None)
        with torch.no_grad():
            pairs = [(result.model(batch), model(batch)) for batch in given[-2:]]
        error = sum(float((one - other).square().sum()) for one, other in pairs) / sum(float(other.square().sum()) for _, other in pairs)
        assert taken.value == pytest.approx(error, rel=1e-4)
        assert result.ranking.scorer == result.plan.scorer == taken.scorer
        assert trials.unmeasured["taylor"] == "needs a loss"

    def test_with_a_loss_and_blocks(self):
        """With a loss, scorers with gradients are tried too, in every mode; the loss of the chosen one is that of the report."""
        subject = residual_network()
        keywords = {"batches": list(subject.batches) * 3, "loss_fn": subject.loss_fn}
        result = pp.prune(subject.model, subject.example_inputs, 0.5, "auto", **keywords)
        tried = result.report.trials.tried
        assert {"taylor", "obs", "magnitude"} <= {trial.scorer for trial in tried}
        assert {trial.mode for trial in tried} == {"width", "depth", "both"}
        taken = next(trial for trial in tried if trial.chosen)
        assert result.plan.mode == taken.mode
        assert result.report.losses.cut == pytest.approx(taken.value, rel=1e-6)
        again = pp.prune(subject.model, subject.example_inputs, 0.5, "auto", **keywords)
        assert again.plan == result.plan
        assert [trial.value for trial in again.report.trials.tried] == [trial.value for trial in tried]

    def test_given_mode(self):
        """A mode that is given is the only one tried."""
        subject = residual_network()
        keywords = {"batches": list(subject.batches) * 3, "loss_fn": subject.loss_fn, "mode": "width"}
        result = pp.prune(subject.model, subject.example_inputs, 0.5, "auto", **keywords, steps=2, recover_steps=2)
        assert {trial.mode for trial in result.report.trials.tried} == {"width"}
        assert result.plan.options["steps"] == 2
        assert result.report.losses.recovered is not None

    def test_time_limit(self):
        """When the time is up, at least one trial was made, and the others say so."""
        result = pp.prune(network(), EXAMPLE, 0.5, "auto", batches=batches(), auto_seconds=0.0)
        tried = result.report.trials.tried
        assert [trial.value is not None for trial in tried] == [True] + [False] * (len(tried) - 1)
        assert all("time was up" in trial.note for trial in tried[1:])

    def test_scorers_do_not_see_the_deciding_batches(self):
        """The batches that decide are held out from scoring and compensation."""
        given = batches()
        given[-1] = given[-1] * float("nan")
        result = pp.prune(network(), EXAMPLE, 0.5, "auto", batches=given[:-1], held_out=given[-2:-1], compensate=True)
        assert result.report.trials.batches == 1
        spoiled = pp.prune(network(), EXAMPLE, 0.5, "obs", batches=given[:-1])
        assert spoiled.plan.scorer == "obs"

    def test_without_data(self):
        """There is nothing to measure with."""
        with pytest.raises(MissingNeedError, match="auto"):
            pp.prune(network(), EXAMPLE, 0.5, "auto")


class TestCommand:
    """`prune --scorer auto`."""

    def test_table_json_and_page(self, tmp_path, monkeypatch):
        """The trials stand in the terminal, in the JSON, in the folder and in the HTML report."""
        monkeypatch.chdir(tmp_path)
        Path("net.py").write_text(NETWORK + MEASURED.replace("range(2)", "range(6)"))
        printed = succeed("prune", "-m", "net.py", "-t", "0.5", "--scorer", "auto", "--compensate", "--out", "small").stdout
        assert "Scorers tried, by loss on held-out batches" in printed
        stored = json.loads(Path("small/report.json").read_text())["trials"]
        (chosen,) = (trial for trial in stored["tried"] if trial["chosen"])
        assert re.search(rf"(?m)^.*\b{chosen['scorer']}\b.*\b{chosen['mode']}\b.*\bused\b", printed)
        assert {trial["mode"] for trial in stored["tried"]} == {"width", "depth", "both"}
        write_report("small", "page.html")
        assert "Scorers tried" in Path("page.html").read_text()
        answer = succeed("prune", "-m", "net.py", "-t", "0.5", "-s", "auto", "--mode", "width", "--out", "small", "--json").stdout
        assert {trial["mode"] for trial in json.loads(answer)["report"]["trials"]["tried"]} == {"width"}

    def test_conflict(self, tmp_path, monkeypatch):
        """A plan alone cannot be measured."""
        monkeypatch.chdir(tmp_path)
        Path("net.py").write_text(NETWORK)
        assert "measures cuts" in fail("prune", "-m", "net.py", "--scorer", "auto", "--plan-only")
