"""Commands that time networks: `prune --metric time`, `prune --time` with its options, `describe --time`, and what `doctor` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxyprune.cli import main
from proxyprune.planning.plan import PrunePlan
from tests.shared.commands import NETWORK

QUICK = ("--time-threads", "1", "--time-repeats", "3")


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a model file in an empty folder, with an empty cache; its layers are large enough that their time counts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("net.py").write_text(NETWORK.replace("Net(16)", "Net(128)").replace("(1, 3, 8, 8)", "(1, 3, 16, 16)"))
    return "net.py"


def output(*arguments: str) -> str:
    """Run a command that has to succeed; return its stdout."""
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_network_is_pruned_to_a_share_of_its_time(model_file: str):
    """The plan has prediction and measurement, the report both times with quartiles, and doctor shows the table."""
    arguments = ("prune", "--model", model_file, "--metric", "time", "--target", "0.7", "--out", "small", *QUICK, "--accept-missed-time")
    shown = json.loads(output(*arguments, "--json"))
    plan = PrunePlan.from_json("small/plan.json")
    assert shown["plan"] == plan.to_dict()
    assert plan.metric == "time"
    assert plan.options["round_to"] == "auto"
    assert plan.time is not None
    assert plan.time.measured is not None
    assert shown["report"]["time"]["ratio"][1] == plan.time.measured.ratio[1]
    assert len(shown["report"]["time"]["before"]) == 3
    assert "Cost tables" in output("doctor")
    tables = json.loads(output("doctor", "--json"))["time_tables"]
    assert [table["networks"] for table in tables] == [1]


def test_several_targets_on_the_command_line(model_file: str):
    """--target names each metric once."""
    output("prune", "--model", model_file, "--target", "macs=0.7,params=0.8", "--plan-only", "--out", "plan.json")
    plan = PrunePlan.from_json("plan.json")
    assert plan.target == {"macs": 0.7, "params": 0.8}
    assert plan.macs <= 0.7 * plan.base_macs
    assert plan.params <= 0.8 * plan.base_params


@pytest.mark.parametrize("target", ["macs=0.7,macs=0.5", "macs=0.7,0.5"])
def test_malformed_targets_are_a_usage_error(model_file: str, target: str):
    """A metric that comes twice, or a part without a metric, is reported before anything runs."""
    result = CliRunner().invoke(main, ["prune", "--model", model_file, "--target", target])
    assert result.exit_code == 2
    assert "macs=0.7,params=0.8" in result.stderr


def test_a_plan_alone_is_predicted(model_file: str):
    """--plan-only prices with the table and measures no network in turns."""
    text = output("prune", "--model", model_file, "--metric", "time", "--plan-only", "--out", "plan.json", *QUICK)
    plan = PrunePlan.from_json("plan.json")
    assert plan.time is not None
    assert plan.time.measured is None
    assert plan.time.nanoseconds <= plan.time.target_nanoseconds
    assert "was not measured" in " ".join(text.split())


def test_time_is_printed_with_quartiles(model_file: str):
    """--time takes batch, repeats, threads and dtype, and keeps them with the result."""
    options = ("--time", "--time-batch", "3", "--time-dtype", "float64", *QUICK)
    text = output("prune", "--model", model_file, "--out", "small", *options)
    assert "One run takes" in text
    time = json.loads(Path("small/report.json").read_text())["time"]
    assert {name: time["settings"][name] for name in ("batch", "threads", "dtype", "repeats")} == {
        "batch": 3,
        "threads": 1,
        "dtype": "float64",
        "repeats": 3,
    }
    assert time["target_ratio"] is None


def test_describe_shows_each_blocks_share(model_file: str):
    """The shares are those of a table, and the text graph stays what it is without --time."""
    text = output("describe", "--model", model_file, "--time", *QUICK)
    assert "of the time" in text
    assert output("describe", "--model", model_file).strip() in text
    shown = json.loads(output("describe", "--model", model_file, "--time", *QUICK, "--json"))
    assert sum(shown["block_nanoseconds"].values()) > 0


def test_score_shows_each_blocks_share(model_file: str):
    """The table has a column of shares, the JSON the nanoseconds of `describe`, and neither is there without --time."""
    arguments = ("score", "--model", model_file, "--scorer", "magnitude")
    text, plain = output(*arguments, "--time", *QUICK), output(*arguments)
    assert "time" in text
    assert "time" not in plain
    shown = json.loads(output(*arguments, "--time", *QUICK, "--json"))
    described = json.loads(output("describe", "--model", model_file, "--time", *QUICK, "--json"))
    assert shown["block_nanoseconds"] == described["block_nanoseconds"]
    assert set(shown["scores"]) <= set(shown["block_nanoseconds"]) | {block["id"] for block in shown["blocks"]}
    assert "block_nanoseconds" not in json.loads(output(*arguments, "--json"))


@pytest.mark.parametrize("multiple", ["0", "-8", "eight", "1.5"])
def test_round_to_takes_a_number_or_auto(model_file: str, multiple: str):
    """Anything else is a usage error."""
    result = CliRunner().invoke(main, ["prune", "--model", model_file, "--round-to", multiple])
    assert result.exit_code == 2
    assert "auto" in result.stderr
