"""Targets of networks in which the MACs of some ops are unknown."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.cli import main
from proxyprune.coupling import rules
from proxyprune.errors import TargetError


def test_rules_that_count_macs_are_those_that_whole_cost_knows():
    """A rule of another module may give up on an op, which then counts as free; so none of them may multiply."""
    counting = {
        path.stem
        for path in Path(rules.__file__).parent.glob("*.py")
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(found, ast.keyword) and found.arg == "macs" and path.stem not in {"register", "walk", "whole_cost"}
    }
    assert counting == {"products", "einstein", "recurrent"}


class Paired(nn.Module):
    """A bilinear form between two layers, which has no cost rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(5, 4)
        self.codes = nn.Parameter(torch.randn(5, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu())
        return self.last(F.bilinear(hidden, hidden, self.codes))


X = torch.randn(1, 6, 8)


def test_a_target_of_macs_is_rejected_when_macs_are_unknown():
    """A share of what is counted is no share of the network, so nothing is planned in silence; the message has the ways out."""
    with pytest.raises(TargetError, match=r"MACs of aten\.bilinear are unknown.*register_rule.*metric='params'.*accept_uncosted=True"):
        pp.prune(Paired(), X, 0.6)


def test_it_is_planned_when_that_is_accepted():
    """The notes of the plan name the ops whose MACs are in no figure."""
    plan = pp.prune(Paired(), X, 0.6, accept_uncosted=True).plan
    assert any("aten.bilinear" in note for note in plan.notes)


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def test_search_and_comparison_pass_it_on():
    """Both plan for networks with unknown MACs when that is accepted, and fail or report the reason otherwise."""
    given = {"batches": [X, X, X], "loss_fn": squared}
    with pytest.raises(TargetError, match="are unknown"):
        pp.search(Paired(), X, 0.6, "random", rounds=1, start="magnitude", **given)
    found = pp.search(Paired(), X, 0.6, "random", rounds=1, start="magnitude", accept_uncosted=True, **given)
    assert found.best.plan.macs <= found.best.plan.target_macs
    for accepted in (False, True):
        compared = pp.compare(Paired(), X, ("magnitude",), targets=(0.6,), seeds=(0,), accept_uncosted=accepted, **given)
        (cell,) = compared.cells
        assert (cell.error is None) == accepted


def test_parameters_are_known_all_the_same():
    """A target of parameters needs no MACs; the note is there, because the plan's MACs lack the op's."""
    plan = pp.prune(Paired(), X, 0.6, metric="params").plan
    assert plan.params <= 0.6 * plan.base_params
    assert any("aten.bilinear" in note for note in plan.notes)


def test_a_registered_cost_makes_it_whole():
    """With a rule for the op, the target is one of all MACs."""
    from proxyprune.coupling import Term, kept_whole

    def rule(walk, node):
        rows, entries = walk.shape(node.args[0])[-2], math.prod(walk.shape(node.args[2]))
        return kept_whole(walk, node, "goes into a bilinear form in", macs=(Term(rows * entries),))

    with pp.register_rule("aten::bilinear", rule):
        result = pp.prune(Paired(), X, 0.6)
    assert result.graph.macs == 6 * (8 * 32 + 32 * 8 + 5 * 8 * 8 + 5 * 4)
    assert not any("aten.bilinear" in note for note in result.plan.notes)


def test_the_command_has_the_option(tmp_path):
    """`proxyprune prune` fails with the message, and plans with --accept-uncosted."""
    file = tmp_path / "net.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_uncosted import Paired, X\n\n"
        "def build_model():\n    return Paired()\n\ndef example_inputs():\n    return X\n"
    )
    command = ["prune", "--model", str(file), "--scorer", "magnitude", "--plan-only", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code != 0
    assert "--accept-uncosted" in " ".join(refused.output.split())
    done = CliRunner().invoke(main, [*command, "--accept-uncosted"])
    assert done.exit_code == 0, done.output
