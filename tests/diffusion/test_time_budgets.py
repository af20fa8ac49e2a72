"""Experts whose budgets are shares of the base's time."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from proxyprune.cli import main
from proxyprune.diffusion import StepAdaptivePipeline, StepAdaptiveTrainer
from proxyprune.errors import TargetError
from proxyprune.measuring.timed_run import timed_in_turns
from proxyprune.measuring.timing import Timing
from proxyprune.planning.plan import PrunePlan
from tests.shared.diffusion_runs import NETWORK, small_config, start

WIDE = NETWORK | {"block_out_channels": [32, 64], "attention_head_dim": 16}
"""A network whose time depends on its widths: in the smallest, calls take most of it."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return a folder for the cost tables of all tests, apart from the user's."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(autouse=True)
def own_tables(tables, monkeypatch):
    """Measure each op once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tables))


def config_of(folder, **changes):
    """Return a run with budgets of time."""
    values = {"budgets__metric": "time", "budgets__method": "even", "budgets__target": 0.7, "budgets__time_batch": 8}
    values |= {"intervals__count": 1, "compute__reference_steps": 20, "run__checkpoint_every": 100, "run__loss_bins": 0}
    config = small_config(folder, **(values | changes))
    (folder / "network.json").write_text(json.dumps(WIDE))
    return config


def test_an_expert_takes_its_share_of_the_time(tmp_path):
    """After two cuts, by a measurement afterwards with room for noise; widths are multiples that pay, and steps follow the MACs it has."""
    trainer = StepAdaptiveTrainer(config_of(tmp_path, pruning__rounds=2), tmp_path / "run")
    pipeline = trainer.train()
    base, inputs = trainer.setup.base_model().eval(), trainer.setup.example_inputs
    record = json.loads(trainer.paths.expert(0).result.read_text())
    plan = PrunePlan.from_json(trainer.paths.expert(0).cut(2).plan)
    assert plan.metric == "time"
    assert plan.options["round_to"] == "auto"
    assert record["time"] == plan.time.measured.ratio[1]
    assert record["macs"] < trainer.setup.base_macs
    turns = timed_in_turns(base, pipeline.experts[0], inputs, Timing(batch=8, repeats=25))
    assert 0.4 < turns.ratio.middle < 0.85
    assert trainer.ledger().spent_macs <= trainer.setup.limit_macs
    assert any("of the time of a forward pass of 8 images" in note for note in trainer.layout().budgets.notes)
    again = StepAdaptivePipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert torch.equal(again.generate(2, steps=3, seed=0), pipeline.generate(2, steps=3, seed=0))


def test_a_time_out_of_reach_is_an_error_before_the_base_is_trained(tmp_path):
    """With the least time that there is."""
    config = config_of(tmp_path, budgets__target=0.05)
    with pytest.raises(TargetError, match="best reachable"):
        StepAdaptiveTrainer(config, tmp_path / "run")


def test_two_processes_make_the_same_cut(tmp_path):
    """The main process measures, and the other takes its figures over."""
    config = config_of(tmp_path, budgets__target=0.9, budgets__time_batch=4)
    with start(config, tmp_path / "run", processes=2) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    weights = load_file(next((tmp_path / "run" / "pipeline" / "experts" / "0").rglob("model.safetensors")))
    assert all(value.isfinite().all() for value in weights.values())


def test_plan_shows_shares_of_the_time(tmp_path):
    """On the command line; MACs follow only when the cuts are made."""
    config = config_of(tmp_path)
    (tmp_path / "config.json").write_text(config.to_text())
    found = CliRunner().invoke(main, ["diffusion", "plan", "--config", str(tmp_path / "config.json"), "--metric", "time"])
    assert found.exit_code == 0, found.output
    assert "of the base's time" in " ".join(found.output.split())
    assert "saved" in found.output


@pytest.mark.parametrize("value", ["auto", "sixteen", 0])
def test_widths_in_multiples(tmp_path, value):
    """A number, or "auto"."""
    command = ["diffusion", "plan", "--set", f"pruning.round_to={value}", "--set", "budgets.time_batch=2"]
    found = CliRunner().invoke(main, command)
    assert (found.exit_code == 0) == (value == "auto"), found.output
    if value != "auto":
        assert "round_to must be a whole number" in " ".join(found.output.split())
