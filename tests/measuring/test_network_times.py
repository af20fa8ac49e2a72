"""From a network to its predicted time: with a timer whose times are a formula, so that every figure is exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import proxyprune as pp
from proxyprune.errors import InputError, TargetError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.network_times import CostTable, with_times
from proxyprune.measuring.op_table import OpTable, machine
from proxyprune.measuring.table_file import read_table, times_folder
from proxyprune.measuring.timing import Timing
from tests.shared.clockwork import NANOSECONDS_PER_ENTRY, Clockwork

INPUTS = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions, one of them in a residual block, and a linear layer."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.outer = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)))


def entries(*shapes: tuple[int, ...]) -> int:
    """Return what the timer gives for a call with these tensors."""
    return NANOSECONDS_PER_ENTRY * sum(int(np.prod(shape)) for shape in shapes)


def timed(folder: Path, timer: Clockwork | None = None, timing: Timing | None = None, model: nn.Module | None = None) -> ModelGraph:
    """Trace a network and give it times."""
    model = model or Net()
    return with_times(pp.trace(model, INPUTS), model, INPUTS, timing, table=CostTable(folder, timer or Clockwork()))


@pytest.mark.parametrize(("width", "inner"), [(48, 96), (32, 64), (16, 96)])
def test_a_layer_costs_at_any_widths_what_the_timer_says(tmp_path: Path, width: int, inner: int):
    """The time of a convolution is exact at measured widths of both sides."""
    graph = timed(tmp_path)
    time = graph.cost.time
    assert time is not None
    atoms = np.array([{"stem": width, "inner": inner}[group.id.split(".")[0]] for group in graph.prunable])
    of_layers = dict(zip((use.name for use in time.uses), time.by_use(atoms).tolist(), strict=True))
    alone = entries((1, width, 8, 8), (inner, width, 3, 3), (inner,))
    found = of_layers["aten.conv2d in inner"]
    assert found == pytest.approx(alone * time.scale, abs=1)


def test_the_whole_network_takes_what_was_measured(tmp_path: Path):
    """What the network takes beside its ops goes to the calls up to a limit, and to the ops beyond it."""
    ops = timed(tmp_path / "alone").cost.time
    assert ops is not None
    for network in (1_000, 3_000_000, 10**9):
        graph = timed(tmp_path / str(network), Clockwork(network))
        assert graph.cost.time is not None
        assert graph.cost.time.total(graph.cost.full) == pytest.approx(network, abs=len(graph.cost.time.uses))


def test_times_never_fall_with_a_width(tmp_path: Path):
    """One atom more in any group never makes the network faster by prediction."""
    graph = timed(tmp_path)
    assert graph.cost.time is not None
    for group in range(len(graph.prunable)):
        plans = np.repeat(graph.cost.full[None], graph.prunable[group].atoms, axis=0)
        plans[:, group] = np.arange(1, graph.prunable[group].atoms + 1)
        assert (np.diff(graph.cost.time.totals(plans)) >= 0).all()


def test_a_second_graph_measures_nothing(tmp_path: Path):
    """What is in the table is not measured again, nor is the network."""
    first, second = Clockwork(), Clockwork()
    timed(tmp_path, first)
    graph = timed(tmp_path, second)
    assert first.asked
    assert not second.asked
    assert graph.cost.time is not None
    assert graph.cost.time.measured_now == 0


def test_an_interrupted_table_goes_on(tmp_path: Path):
    """Calls that were measured before an interruption are kept, and only the others are measured."""

    class Interrupted(Clockwork):
        def measure(self, calls):
            for number, pair in enumerate(super().measure(calls)):
                if number == 5:
                    raise KeyboardInterrupt
                yield pair

    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, Interrupted())
    (path,) = tmp_path.glob("*.json")
    content = read_table(path)
    assert content is not None
    assert len(content["nanoseconds"]) == 5
    rest = Clockwork()
    timed(tmp_path, rest)
    assert not set(rest.asked) & set(content["nanoseconds"])


def test_a_damaged_table_is_an_empty_one(tmp_path: Path):
    """A file that is no table is measured again and replaced."""
    timed(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text("{half a")
    timer = Clockwork()
    timed(tmp_path, timer)
    assert timer.asked
    assert read_table(path) is not None


def test_another_machine_has_another_file(tmp_path: Path):
    """Threads, device and version are part of the file's name, and of its content."""
    first, second = (OpTable.opened(machine("cpu", threads), tmp_path) for threads in (1, 2))
    first.nanoseconds["a"] = 5
    first.save()
    assert first.path != second.path
    assert json.loads(first.path.read_text())["machine"]["threads"] == 1


def test_two_processes_keep_each_others_times(tmp_path: Path):
    """A table that was read before another process wrote does not lose what that one measured."""
    first, second = (OpTable.opened(machine("cpu", 1), tmp_path) for _ in range(2))
    first.nanoseconds["a"] = 1
    second.nanoseconds["b"] = 2
    first.save()
    second.save()
    assert OpTable.opened(machine("cpu", 1), tmp_path).nanoseconds == {"a": 1, "b": 2}


def test_the_folder_follows_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """XDG_CACHE_HOME moves the tables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert times_folder() == tmp_path / "proxyprune" / "times"


def test_ops_that_cannot_be_timed_alone_are_named(tmp_path: Path):
    """Their time is part of what the network takes beside its ops."""
    graph = timed(tmp_path, Clockwork(refused="relu"))
    assert graph.cost.time is not None
    assert all("relu" in text for text in graph.cost.time.untimed)
    assert graph.cost.time.untimed
    assert not any("relu" in use.name for use in graph.cost.time.uses)


def test_a_batch_is_timed_as_a_batch(tmp_path: Path):
    """The example inputs are repeated, and every call has their batch."""
    timer = Clockwork()
    timed(tmp_path, timer, Timing(batch=4))
    assert any(text.startswith("aten.conv2d.default(tensor[4x48x8x8]") for text in timer.asked)


@pytest.mark.parametrize("settings", [{"batch": 0}, {"threads": 0}, {"repeats": 1}, {"dtype": "int8"}, {"batch": 1.5}])
def test_senseless_timings_are_refused(settings: dict[str, object]):
    """Every value is checked."""
    with pytest.raises(InputError):
        Timing(**settings)  # type: ignore[arg-type]


class OffTile(Clockwork):
    """A machine on which widths that are no multiple of eight take twice as long."""

    def measure(self, calls):
        """Yield the formula's time, doubled for an odd width of a weight."""
        for call, value in super().measure(calls):
            odd = any(size % 8 for spec in call.tensors if spec.parameter and len(spec.shape) == 4 for size in spec.shape[:2])
            yield call, value * (2 if odd else 1)


def test_the_multiple_that_pays_is_taken(tmp_path: Path):
    """Where multiples of eight are fast, round_to="auto" gives multiples of eight and not of sixteen."""
    graph = timed(tmp_path, OffTile(), model=Net(96))
    assert graph.cost.time is not None
    assert set(graph.cost.time.multiples.values()) == {8}
    plan = pp.make_plan(graph, pp.score(graph, model=Net(96)), 0.6, round_to="auto")
    assert plan.widths
    assert all(after % 8 == 0 for _, after in plan.widths.values())
    assert any(after % 16 for _, after in plan.widths.values())


def test_no_multiple_pays_where_all_widths_are_alike(tmp_path: Path):
    """On a machine without tiles every width stays open."""
    graph = timed(tmp_path, model=Net(96))
    assert graph.cost.time is not None
    assert set(graph.cost.time.multiples.values()) == {1}


@pytest.mark.parametrize("target", [0.8, 0.5, "800000us"])
def test_a_plan_never_exceeds_its_predicted_time(tmp_path: Path, target: float | str):
    """The prediction is a whole number of nanoseconds within the budget, and close to it."""
    graph = timed(tmp_path)
    plan = pp.make_plan(graph, pp.score(graph, model=Net()), target, metric="time", model=Net())
    assert plan.time is not None
    assert plan.time.target_nanoseconds is not None
    assert 0 <= plan.time.target_nanoseconds - plan.time.nanoseconds <= 0.05 * plan.time.base_nanoseconds
    assert plan.metric == "time"
    assert plan.target == target
    assert pp.PrunePlan.from_text(plan.to_text()) == plan


def test_a_time_out_of_reach_says_what_is_reachable(tmp_path: Path):
    """The message has the best reachable time."""
    graph = timed(tmp_path, Clockwork(network=1_000_000))
    with pytest.raises(TargetError, match=r"The best reachable is .* nanoseconds"):
        pp.make_plan(graph, pp.score(graph, model=Net()), 0.0001, metric="time")


@pytest.mark.parametrize("request_", [{"metric": "time"}, {"round_to": "auto"}])
def test_a_graph_without_times_is_refused(request_: dict[str, str]):
    """The message names the function that adds them."""
    graph = pp.trace(Net(), INPUTS)
    with pytest.raises(InputError, match="with_times"):
        pp.make_plan(graph, pp.score(graph, model=Net()), 0.6, **request_)  # type: ignore[arg-type]
