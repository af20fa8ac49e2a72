"""Several budgets at once: a plan meets all of them, and uses up at least one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import proxyprune as pp
from proxyprune.errors import TargetError
from proxyprune.planning.budget import check_target, targets_of
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.price import JOINT_LIMIT, JointCost, PlanCost
from proxyprune.planning.request import PlanRequest
from tests.measuring.test_network_times import INPUTS, Net

GRAPH = pp.trace(Net(96), INPUTS)
RANKING = pp.score(GRAPH, model=Net(96))


@settings(max_examples=25)
@given(st.floats(0.1, 0.95), st.floats(0.1, 0.95), st.sampled_from(["blocks", "auto"]))
def test_all_budgets_are_met_and_one_is_used_up(macs: float, params: float, allocation: str):
    """Both hold, and one of them is within the tolerance of its limit."""
    plan = pp.make_plan(GRAPH, RANKING, {"params": params, "macs": macs}, allocation=allocation)
    assert plan.macs <= plan.target_macs <= macs * plan.base_macs + 1
    assert plan.params <= plan.target_params <= params * plan.base_params + 1
    gaps = ((plan.target_macs - plan.macs) / plan.base_macs, (plan.target_params - plan.params) / plan.base_params)
    assert min(gaps) <= 0.03
    assert plan.metric == "macs,params"
    assert PrunePlan.from_text(plan.to_text()) == plan


def test_channels_are_weighed_against_what_holds_the_plan_back():
    """Comparable channel scores work with several budgets too."""
    torch.manual_seed(0)
    data = torch.randn(4, 3, 8, 8)
    ranking = pp.score(GRAPH, "taylor", model=Net(96), batches=[data], loss_fn=lambda model, batch: model(batch).square().mean())
    plan = pp.make_plan(GRAPH, ranking, {"macs": 0.7, "params": 0.4})
    assert plan.options["allocation"] == "channels"
    assert plan.params <= plan.target_params
    assert plan.macs <= plan.target_macs


class Residual(nn.Module):
    """A block that can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


@pytest.mark.parametrize("mode", ["depth", "both"])
def test_blocks_may_leave_for_several_budgets(mode: str):
    """Modes that remove blocks meet every budget as well."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), *(Residual() for _ in range(4)), nn.Conv2d(16, 3, 3))
    graph = pp.trace(model, INPUTS)
    plan = pp.make_plan(graph, pp.score(graph, model=model), {"macs": 0.6, "params": 0.5}, mode=mode)
    assert plan.removed_blocks
    assert plan.macs <= plan.target_macs
    assert plan.params <= plan.target_params


def test_one_budget_out_of_reach_is_named():
    """The error is that of the budget that cannot be met alone."""
    with pytest.raises(TargetError, match="parameters"):
        pp.make_plan(GRAPH, RANKING, {"macs": 0.9, "params": 1})


@settings(max_examples=50)
@given(st.lists(st.integers(1, 10**15), min_size=2, max_size=2), st.integers(1, 96), st.integers(1, 192))
def test_the_joint_price_is_within_its_limit_exactly_if_every_budget_is(limits: list[int], stem: int, inner: int):
    """No rounding lets a plan through that exceeds one of its budgets, or keeps one out that does not."""
    atoms = np.array([{"stem": stem, "inner": inner}[group.id.split(".")[0]] for group in GRAPH.prunable])
    prices = (PlanCost(GRAPH, "macs"), PlanCost(GRAPH, "params"))
    joint = JointCost(prices, tuple(limits))
    meets = all(price.one(atoms) <= limit for price, limit in zip(prices, limits, strict=True))
    assert (joint.one(atoms) <= JOINT_LIMIT) == meets
    assert joint.many(atoms[None]).tolist() == [joint.one(atoms)]


@pytest.mark.parametrize(
    ("target", "says"),
    [({}, "empty"), ({"flops": 0.5}, "flops"), ({"macs": 1.5}, "1.5"), ({"time": 5}, "duration"), ({"time": "5m"}, "5m")],
)
def test_senseless_targets_are_refused(target: Mapping[str, Any], says: str):
    """Every target is checked under its own metric."""
    with pytest.raises(TargetError, match=says):
        PlanRequest.of(target)


@pytest.mark.parametrize(
    ("text", "value"), [("5ms", 5_000_000), ("1.5 s", 1_500_000_000), ("250us", 250_000), ("40ns", 40), (".5ms", 500_000)]
)
def test_durations_are_read_exactly(text: str, value: int):
    """A duration is whole nanoseconds."""
    assert check_target(text, "time") == value


@pytest.mark.parametrize("target", [0, 1, 5, "5", "0ms", "-5ms", True, "fast"])
def test_what_is_no_time_is_refused(target: Any):
    """A number from 1 up has no unit, so it is no time."""
    with pytest.raises(TargetError):
        check_target(target, "time")


def test_targets_keep_one_order():
    """However they are written, metrics come in the order of the package."""
    assert list(targets_of({"time": 0.5, "macs": 0.5}, "macs")) == ["macs", "time"]
    assert PlanRequest.of({"time": 0.5, "macs": 0.5}).metric == "macs,time"


def test_a_request_goes_through_its_own_keywords():
    """Keywords and target make the same request again, with the multiples that a budget of time takes by default."""
    request = PlanRequest.of({"time": 0.5, "macs": 0.5}, keep=["head"])
    assert request.limits.round_to == "auto"
    assert PlanRequest.of(request.target, **request.keywords()) == request
