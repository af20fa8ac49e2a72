"""A budget of time is met by measuring and correcting: with times that are formulas, and once on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import proxyprune as pp
from proxyprune.api import prune_ranked
from proxyprune.errors import TargetError
from proxyprune.measuring.network_times import CostTable, with_times
from proxyprune.measuring.time_budget import Enough, prune_to_time
from proxyprune.measuring.time_corrections import CORRECTIONS, TOLERANCE, UNUSED
from proxyprune.measuring.timed_run import Quartiles, TimedTurns, timed_in_turns
from proxyprune.measuring.timing import Timing
from proxyprune.planning.request import PlanRequest
from proxyprune.result import PruneResult
from tests.measuring.test_network_times import INPUTS, Net
from tests.shared.clockwork import Clockwork


def turns(ratio: float, seconds: float = 1.0) -> TimedTurns:
    """Build a measurement of this ratio."""
    parts = (Quartiles(0.9 * value, value, 1.1 * value) for value in (seconds, seconds * ratio, ratio))
    return TimedTurns(*parts, Timing(), interval=(0.99 * ratio, 1.01 * ratio), turns=15)


def met(folder: Path, target: object, measured: Callable[[float], float], **options: bool) -> tuple[PruneResult, list[float]]:
    """Prune a network whose measured ratio is a function of the predicted one; also return every predicted ratio."""
    torch.manual_seed(0)
    model, predicted = Net(96), []
    graph = with_times(pp.trace(model, INPUTS), model, INPUTS, table=CostTable(folder, Clockwork()))
    request = PlanRequest.of(target, metric="time", round_to=1)  # type: ignore[arg-type]
    ranking = pp.score(graph, model=model)

    def measure(result: PruneResult, enough: Enough) -> TimedTurns:
        assert result.plan.time is not None
        predicted.append(result.plan.time.ratio)
        return turns(measured(predicted[-1]))

    return prune_to_time(
        request,
        lambda asked: prune_ranked(model, INPUTS, graph, ranking, asked),
        measure,
        accept_missed=options.get("accept_missed", False),
    ), predicted


def test_a_true_prediction_needs_no_correction(tmp_path: Path):
    """Where the network takes what was predicted, it is measured once."""
    result, predicted = met(tmp_path, 0.6, lambda ratio: ratio)
    assert len(predicted) == 1
    assert result.plan.time is not None
    assert result.plan.time.measured is not None
    assert result.plan.time.measured.corrections == 0


@pytest.mark.parametrize("factor", [0.8, 1.2, 1.4])
def test_a_wrong_prediction_is_corrected_by_the_ratio(tmp_path: Path, factor: float):
    """Whether predictions are too high or too low, the measured time ends near the target, and the target stays as it was asked."""
    result, predicted = met(tmp_path, 0.6, lambda ratio: factor * ratio)
    assert len(predicted) >= 2
    assert result.plan.target == 0.6
    time = result.plan.time
    assert time is not None
    assert time.measured is not None
    assert 0.6 - UNUSED <= time.measured.ratio[1] <= 0.6 + TOLERANCE
    assert time.measured.met
    assert time.measured.first_predicted == predicted[0]
    assert time.measured.first_measured == pytest.approx(factor * predicted[0])
    assert result.report.time == time.measured
    assert result.report.seconds == (1.0, time.measured.ratio[1])


def test_a_duration_is_met_on_the_clock(tmp_path: Path):
    """A target in milliseconds is compared with what the unpruned network takes beside it."""
    result, _ = met(tmp_path, "600ms", lambda ratio: 1.3 * ratio)
    assert result.plan.target == "600ms"
    assert result.report.time is not None
    assert result.report.time.target_ratio == pytest.approx(0.6)
    assert result.report.time.met


def test_a_target_that_is_missed_is_an_error_with_the_best(tmp_path: Path):
    """After the last correction the error has the fastest network's time, and accepting it gives a note instead."""
    with pytest.raises(TargetError, match=r"80\.0% of the time.*the target was 60\.0%.*accept_missed_time"):
        met(tmp_path, 0.6, lambda ratio: 0.8)
    result, predicted = met(tmp_path, 0.6, lambda ratio: 0.8, accept_missed=True)
    assert len(predicted) <= CORRECTIONS + 1
    assert result.plan.time is not None
    assert result.plan.time.measured is not None
    assert not result.plan.time.measured.met
    assert any("missed" in note for note in result.plan.notes)
    assert any("missed" in note for note in result.report.notes)


def test_of_the_networks_that_meet_the_target_the_slowest_is_taken(tmp_path: Path):
    """A correction that overshoots does not lose what an earlier attempt found."""
    given = iter([0.65, 0.40, 0.52, 0.45])
    result, _ = met(tmp_path, 0.6, lambda ratio: next(given))
    assert result.report.time is not None
    assert result.report.time.ratio[1] == 0.52
    assert result.report.time.corrections == 2


def test_several_budgets_stay_met_while_one_is_corrected(tmp_path: Path):
    """Corrections change the budget of time only."""
    result, _ = met(tmp_path, {"params": 0.5, "time": 0.7}, lambda ratio: 1.3 * ratio)
    plan = result.plan
    assert plan.metric == "params,time"
    assert plan.target == {"params": 0.5, "time": 0.7}
    assert plan.params <= plan.target_params == plan.base_params // 2
    assert pp.PrunePlan.from_text(plan.to_text()) == plan


def test_turns_alternate_and_leave_the_networks_as_they_were():
    """Both networks run equally often, in turns, in evaluation mode, and are in training mode again afterwards."""
    order = []
    models = [Net(8), Net(4)]
    for name, model in zip("ab", models, strict=True):
        model.train()
        model.register_forward_hook(lambda module, inputs, output, name=name: order.append((name, module.training, len(inputs[0]))))
    found = timed_in_turns(models[0], models[1], INPUTS, Timing(repeats=3, batch=2, threads=1))
    assert order == [("a", False, 2), ("b", False, 2)] * (len(order) // 2)
    assert all(model.training for model in models)
    assert found.ratio.low <= found.ratio.middle <= found.ratio.high


def test_a_dtype_is_timed_on_a_copy():
    """The network itself keeps its weights."""
    model = Net(8)
    timed_in_turns(model, model, INPUTS, Timing(repeats=3, dtype="bfloat16"))
    assert model.stem.weight.dtype is torch.float32


def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A real table, a real measurement: the report has both times and the plan a prediction, whatever this machine takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = Net(64)
    result = pp.prune(model, INPUTS, 0.7, metric="time", timing=Timing(threads=1, batch=4, repeats=5), accept_missed_time=True)
    time = result.plan.time
    assert time is not None
    assert time.measured == result.report.time
    assert time.nanoseconds <= time.target_nanoseconds  # type: ignore[operator]
    assert time.settings["threads"] == 1
    assert time.settings["batch"] == 4
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert list((tmp_path / "proxyprune" / "times").glob("*.json"))
