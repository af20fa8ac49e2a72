"""Promises 1 to 3 on random small networks and random plans: it runs, it is exact, it equals masking."""

from __future__ import annotations

import random

import torch
from drawn import DESIGNS, SIZE, Design, random_plan
from hypothesis import given, settings, strategies as st
from masking import assert_equals_masking
from zoo import (
    measured_macs,
    run,
    to_tensors,
)

import proxyprune as pp


@settings(max_examples=60)
@given(
    design=DESIGNS,
    norm_groups=st.sampled_from(("balanced", "whole", "reduced")),
    conv_groups=st.sampled_from(("balanced", "whole")),
    plan_seed=st.integers(0, 999),
)
def test_any_plan_on_any_network_runs_is_exact_and_equals_masking(
    design: Design, norm_groups: str, conv_groups: str, plan_seed: int
) -> None:
    """Whatever the groups allow is right: output shapes stay, planned cost is measured cost, and pruning equals masking."""
    model = design.build()
    inputs = (torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(design.seed)),)
    graph = pp.trace(model, inputs, norm_groups=norm_groups, conv_groups=conv_groups)
    assert graph.unsupported_ops == ()
    assert graph.macs == measured_macs(model, inputs)
    if not graph.prunable:
        return
    plan = random_plan(graph, random.Random(plan_seed))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = pp.apply_plan(model, plan, inputs, graph=graph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [t.shape for t in to_tensors(run(small, inputs))] == [t.shape for t in to_tensors(run(model, inputs))]
    assert plan.macs == measured_macs(small, inputs)
    assert plan.params == sum(parameter.numel() for parameter in small.parameters())
    assert_equals_masking(model, small, graph, plan, inputs)


@settings(max_examples=25)
@given(design=DESIGNS, target=st.floats(0.3, 0.95), scorer=st.sampled_from(("magnitude", "random")))
def test_any_network_meets_its_budget_or_says_what_it_can_reach(design: Design, target: float, scorer: str) -> None:
    """A plan stays within its budget; when none does, the error names a fraction that then works."""
    model = design.build()
    inputs = (torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(design.seed)),)
    graph = pp.trace(model, inputs)
    ranking = pp.score(graph, scorer, model=model)
    try:
        plan = pp.make_plan(graph, ranking, target, model=model)
    except pp.TargetError as error:
        best = float(str(error).split(" of the base")[0].split()[-1])
        assert best > target
        if best < 1:
            assert pp.make_plan(graph, ranking, best, model=model).macs <= best * graph.macs
        return
    assert plan.macs <= plan.target_macs <= target * graph.macs
    assert plan.macs == graph.cost.macs(plan.atoms(graph))
