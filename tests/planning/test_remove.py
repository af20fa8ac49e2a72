"""Blocks that leave as a whole because the caller says so, in every mode."""

from __future__ import annotations

import pytest
import torch
from subject import subject

import proxyprune as pp
from proxyprune.errors import InputError, KeepPatternError
from proxyprune.scoring import Ranking


def pruned(target: float = 0.6, **given):
    network = subject()
    return pp.prune(network.model, network.example_inputs, target, **given)


@pytest.mark.parametrize("mode", ["width", "depth", "both"])
def test_a_named_block_leaves_and_the_budget_holds(mode):
    """The block leaves in every mode, the rest meets the budget, and the plan records the wish."""
    result = pruned(remove="blocks.2", mode=mode)
    assert "blocks.2" in result.plan.removed_blocks
    assert result.plan.macs <= result.plan.target_macs
    assert result.plan.macs == pp.trace(result.model, subject().example_inputs).macs
    assert result.plan.options["remove"] == ["blocks.2"]
    assert "remove" not in pruned(mode=mode).plan.options


def test_mode_depth_removes_no_more_than_the_budget_needs():
    """If the named block alone meets the budget, the others stay, whatever their scores are."""
    graph = pp.trace(subject().model, subject().example_inputs)
    scores = {block.id: 0.9 if block.id == "blocks.2" else 0.1 for block in graph.blocks}
    plan = pp.make_plan(graph, Ranking(scores, "given"), 0.7, mode="depth", remove=("blocks.2",))
    assert plan.removed_blocks == ("blocks.2",)
    assert pp.make_plan(graph, Ranking(scores, "given"), 0.7, mode="depth").removed_blocks != ("blocks.2",)


def test_several_patterns_joined_by_a_bar_are_one():
    """`a|b` matches what a or b matches, in every limit; each part has to match something."""
    result = pruned(0.5, remove="blocks.0|blocks.1", keep="stem|head")
    assert set(result.plan.removed_blocks) == {"blocks.0", "blocks.1"}
    assert result.model.stem.weight.shape[0] == 12
    with pytest.raises(KeepPatternError, match="'nowhere'"):
        pruned(keep="stem|nowhere")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"remove": "stem"}, InputError, "No block that 'stem' matches can be removed"),
        ({"remove": "nowhere"}, KeepPatternError, "matches no block"),
        ({"remove": "blocks.1", "keep": "blocks.1"}, InputError, "protects it"),
        ({"remove": ""}, KeepPatternError, "non-empty"),
    ],
)
def test_what_cannot_leave_is_an_error(given, error, message):
    """The message names the pattern."""
    with pytest.raises(error, match=message):
        pruned(**given)


def test_steps_remove_the_block_once():
    """With several cuts the block leaves in the first, and the plan for the unpruned network has it."""
    result = pruned(0.4, remove=("blocks.2",), steps=2)
    assert "blocks.2" in result.plan.removed_blocks
    again = pp.apply_plan(subject().model, result.plan, subject().example_inputs)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), result.model(x))
