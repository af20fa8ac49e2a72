"""Errors about what was mistaken for something else name both, and what to give instead."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import proxyprune as pp
from proxyprune.errors import InvalidScoreError, ModelFileError, TargetError


def network() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


INPUTS = torch.zeros(1, 3, 8, 8)


class Relabelled:
    """A scorer that passes another scorer's ranking on."""

    name, needs = "mine", frozenset({"weights"})

    def score(self, graph, context):
        return pp.score(graph, "magnitude", model=context.model)


def test_a_misspelt_name_of_the_package_is_corrected():
    """And a name like nothing is not."""
    with pytest.raises(AttributeError, match=r"has no attribute 'prunne'; did you mean 'prune'\?"):
        _ = pp.prunne
    with pytest.raises(AttributeError, match=r"has no attribute 'zzzz'$"):
        _ = pp.zzzz
    assert not hasattr(pp, "savee")


def test_correcting_costs_no_import():
    """A name that is there loads as before, and difflib is loaded for a wrong one only."""
    code = "import sys, proxyprune; assert 'difflib' not in sys.modules; assert proxyprune.prune; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plan_in_place_of_a_ranking(tmp_path):
    """Is called a plan."""
    result = pp.prune(network(), INPUTS, target=0.6)
    with pytest.raises(InvalidScoreError, match="Expected a ranking, found a plan"):
        pp.Ranking.from_dict(json.loads(result.plan.to_text()))


def test_a_model_in_place_of_its_function(tmp_path):
    """The function is asked for."""
    pp.save(pp.prune(network(), INPUTS, target=0.6), tmp_path / "small")
    with pytest.raises(ModelFileError, match=r"found a model \(Sequential\)\. Pass the function itself"):
        pp.load(tmp_path / "small", network())


def test_a_ranking_of_another_scorer_is_noted():
    """Its scores count, and a note says whose they are."""
    model = network()
    ranking = pp.score(pp.trace(model, INPUTS), Relabelled(), model=model)
    assert ranking.notes[-1] == "Scorer 'mine' returned a ranking that names 'magnitude' as its scorer."
    own = pp.score(pp.trace(model, INPUTS), "magnitude", model=model)
    assert not any("names" in note for note in own.notes)


@pytest.mark.parametrize("target", [50, "50"])
def test_a_percentage_without_its_sign_is_asked_for(target):
    """50 is 50 MACs; an amount with a suffix, or a share, is what it says."""
    with pytest.raises(TargetError, match=r"Did you mean 0\.5, or '50%'\?"):
        pp.prune(network(), INPUTS, target=target)
    with pytest.raises(TargetError) as found:
        pp.prune(network(), INPUTS, target=0.0005)
    assert "Did you mean" not in str(found.value)
