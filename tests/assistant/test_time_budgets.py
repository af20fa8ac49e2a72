"""Sessions with a budget of time, and with several budgets."""

from __future__ import annotations

import pytest
import torch
from session_calls import answered, failed

import proxyprune as pp
from proxyprune.assistant import PruningTask, Session
from proxyprune.errors import JournalError
from tests.measuring.test_network_times import Net

INPUTS = torch.zeros(1, 3, 16, 16)


pytestmark = pytest.mark.usefixtures("own_tables")


def task(target, batch: int = 4, **keywords) -> PruningTask:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net(96).eval()
    return PruningTask.of(model, INPUTS, target, timing=pp.Timing(threads=1, batch=batch, repeats=3), **keywords)


def test_plans_meet_a_budget_of_time(tmp_path):
    """describe, price and plan have nanoseconds of the cost table; a larger target and a cost above the budget are reported."""
    with Session.open(task(0.7, metric="time"), tmp_path / "w") as session:
        whole = session.task.graph.cost.time.total(session.task.graph.cost.full)
        goal = answered(session, "describe")["goal"]
        assert goal["metric"] == "time"
        assert goal["base"] == whole
        assert goal["at_most"] == int(0.7 * whole)
        free = answered(session, "price", widths={})
        assert free["nanoseconds"] == whole
        assert not free["within_budget"]
        assert free["over_budget_by"] == whole - goal["at_most"]
        made = answered(session, "plan")
        assert made["nanoseconds"] <= goal["at_most"]
        assert made["share_of_time"] == round(made["nanoseconds"] / whole, 6)
        assert answered(session, "plan", target=0.6)["nanoseconds"] <= 0.6 * whole
        assert "above the session's budget" in failed(session, "plan", target=0.9)
        assert answered(session, "measure", plan=made["plan"], what=["seconds"])["seconds"]
        assert answered(session, "apply", plan=made["plan"], name="small")["loss"] is None


def test_several_budgets_hold_together(tmp_path):
    """The goal has them by metric, every plan meets all, and a call cannot change one of them alone."""
    with Session.open(task({"macs": 0.9, "params": 0.5}), tmp_path / "w") as session:
        goal, graph = answered(session, "describe")["goal"], session.task.graph
        assert goal["at_most"] == {"macs": int(0.9 * graph.macs), "params": int(0.5 * graph.params)}
        made = answered(session, "plan")
        assert made["macs"] <= goal["at_most"]["macs"]
        assert made["params"] <= goal["at_most"]["params"]
        assert answered(session, "price", widths={})["over_budget_by"]["params"] == graph.params - goal["at_most"]["params"]
        assert "several budgets" in failed(session, "plan", target=0.4)


def test_a_session_with_other_times_does_not_go_on(tmp_path):
    """Predicted nanoseconds hold for one batch size, so the plans of another one do not count."""
    for _ in range(2):
        with Session.open(task(0.7, metric="time"), tmp_path / "w") as session:
            assert answered(session, "describe")["goal"]["metric"] == "time"
    with pytest.raises(JournalError, match="times"), Session.open(task(0.7, batch=2, metric="time"), tmp_path / "w"):
        pass
