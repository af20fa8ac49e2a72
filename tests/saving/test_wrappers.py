"""Saving, loading and pickling around wrappers: the message names the wrapper, and a result can be sent to another process."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import proxyprune as pp
from proxyprune.errors import InputError, PlanMismatchError, WeightsError

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def build() -> nn.Module:
    """Two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def test_a_factory_that_wraps_is_named(tmp_path: Path) -> None:
    """A saved plain network and a factory that compiles or parallelises it."""
    pp.save(pp.prune(build(), X, 0.6), tmp_path / "saved")
    with pytest.raises(PlanMismatchError, match=r"wrapped network \(DataParallel\).*model\.module"):
        pp.load(tmp_path / "saved", lambda: nn.DataParallel(build()))
    with pytest.raises(PlanMismatchError, match=r"wrapped network \(OptimizedModule\).*model\._orig_mod"):
        pp.load(tmp_path / "saved", lambda: torch.compile(build()))


def test_a_network_pruned_inside_a_wrapper_is_named(tmp_path: Path) -> None:
    """The names in the folder have a prefix that those of the factory lack; with the same wrapper it loads."""
    result = pp.prune(nn.DataParallel(build()), X, 0.6)
    pp.save(result, tmp_path / "saved")
    with pytest.raises(PlanMismatchError, match=r"pruned inside a wrapper: its names start with 'module\.'"):
        pp.load(tmp_path / "saved", build)
    assert torch.equal(pp.load(tmp_path / "saved", lambda: nn.DataParallel(build()))(X), result.model(X))


def test_a_result_that_was_wrapped_afterwards_is_not_saved(tmp_path: Path) -> None:
    """Its weights could not be loaded under the names of the wrapper."""
    result = pp.prune(build(), X, 0.6)
    compiled = replace(result, model=torch.compile(result.model))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"wrapped \(OptimizedModule\).*result\.model\._orig_mod"):
        pp.save(compiled, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_result_survives_pickling(tmp_path: Path) -> None:
    """Model, plan, figures and texts arrive; it can still be saved. What needs the traced program is an error that names the way."""
    result = pp.prune(build(), X, 0.6)
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.model(X), result.model(X))
    assert again.plan == result.plan
    assert again.report == result.report
    assert again.graph.to_text() == result.graph.to_text()
    assert again.graph.fingerprint == result.graph.fingerprint
    pp.save(again, tmp_path / "saved")
    assert torch.equal(pp.load(tmp_path / "saved", build)(X), result.model(X))
    with pytest.raises(InputError, match="Trace the model again"):
        pp.apply_plan(build(), again.plan, X, graph=again.graph)
