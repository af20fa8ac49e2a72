"""`proxyprune search` and `proxyprune compare`: tables, JSON, pictures, and one message for each mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import MEASURED, NETWORK, fail, run, succeed

import proxyprune as pp
from proxyprune.modelfile import load_model_file

VALIDATED = """
def validation_batches():
    return [torch.randn(4, 3, 8, 8)]
"""


@pytest.fixture
def measured_file(tmp_path, monkeypatch) -> Path:
    """Return a model file with data, in an otherwise empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK + MEASURED)
    return Path("net.py")


class TestSearch:
    """`search` measures proposals and saves the best network."""

    def test_saves_the_best_network(self, measured_file):
        """The folder loads, the table has every round, the memory every line, and the note says what was held out."""
        result = succeed("search", "-m", measured_file, "--proposer", "random", "--rounds", 3, "--target", "0.6", "--plot", "s.png")
        assert "3 of them measured" in result.stdout
        assert "held out for measuring" in result.stdout
        assert result.stderr.count("round ") >= 3
        assert Path("s.png").stat().st_size > 5000
        file = load_model_file("net.py")
        loaded = pp.load("net-searched", file.build_model)
        found, base = (pp.trace(model, file.example_inputs(), probe=False).macs for model in (loaded, file.build_model()))
        assert 0.55 * base < found <= 0.6 * base
        assert len(Path("net-search.jsonl").read_text().splitlines()) >= 5

    def test_json_is_all_that_stdout_holds(self, measured_file):
        """--json prints the rounds, and progress goes to stderr."""
        arguments = ("search", "-m", measured_file, "-p", "coordinate", "--rounds", 2, "--recovery-steps", 1, "--json")
        data = json.loads(succeed(*arguments).stdout)
        assert data["measurements"] == 2
        assert data["loss"] == min(entry["loss"] for entry in data["rounds"])
        assert data["plan"]["macs"] <= data["plan"]["target_macs"]

    def test_a_search_is_resumed_on_request_only(self, measured_file):
        """A second run is refused unless it resumes, and then only the missing rounds are measured."""
        start = ("search", "-m", measured_file, "-p", "random", "--memory", "m.jsonl")
        succeed(*start, "--rounds", 2)
        assert "Resume it" in fail(*start, "--rounds", 3)
        assert "belongs to another search" in fail(*start, "--rounds", 3, "--resume", "--target", "0.5")
        before = Path("m.jsonl").read_bytes()
        succeed(*start, "--rounds", 3, "--resume")
        assert Path("m.jsonl").read_bytes().startswith(before)

    @pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
    def test_ctrl_c_says_how_to_go_on(self, measured_file):
        """A search that is stopped keeps its rounds, says so, and is resumed."""
        start = ("search", "-m", str(measured_file), "-p", "random", "--memory", "m.jsonl", "--rounds")
        command = [sys.executable, "-m", "proxyprune", *start, "500"]
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job is started with the signal ignored
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("round "))
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        assert process.returncode == 130
        assert "Stopped. The finished rounds are kept" in said
        assert "Traceback" not in said
        measured = sum('"loss"' in line for line in Path("m.jsonl").read_text().splitlines())
        assert measured >= 1
        before = Path("m.jsonl").read_bytes()
        succeed(*start, measured + 1, "--resume")
        assert Path("m.jsonl").read_bytes().startswith(before)

    def test_a_destination_is_tried_before_anything_is_measured(self, measured_file):
        """A search does not begin when its result could not be saved."""
        assert "it is a file" in fail("search", "-m", measured_file, "--rounds", 2, "--out", measured_file)
        assert not Path("net-search.jsonl").exists()

    def test_batches_of_the_file_are_used_for_measuring(self, measured_file):
        """With validation_batches() nothing is held out of the calibration batches."""
        measured_file.write_text(NETWORK + MEASURED + VALIDATED)
        result = succeed("search", "-m", measured_file, "-p", "random", "--rounds", 1)
        assert "held out for measuring" not in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("-p", "evolutoin"), "evolution"),
            (("--fake-weights",), "--fake-weights"),
            (("--plot", "s.gif"), ".gif"),
            (("-p", "random", "--llm-model", "x"), "uses no language model"),
            (("-p", "local"), "needs --llm-model"),
            (("--rounds", "0"), "--rounds"),
        ],
    )
    def test_mistakes_are_told(self, measured_file, arguments, message):
        """Each before anything slow happens."""
        assert message in fail("search", "-m", measured_file, *arguments)

    def test_a_file_without_data_is_told_what_to_define(self, model_file):
        """The message names the functions."""
        assert "calibration_batches()" in fail("search", "-m", model_file)


@pytest.fixture
def model_file(tmp_path, monkeypatch) -> Path:
    """Return a model file without data."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    return Path("net.py")


class TestCompare:
    """`compare` measures scorers side by side."""

    ARGUMENTS = ("--scorers", "magnitude,random", "--targets", "0.6,0.8", "--modes", "width,depth", "--seeds", "1", "--recovery-steps", "1")

    def test_shows_a_table_for_each_case(self, measured_file):
        """Scorers, cases and the unpruned network are there, and the picture is drawn."""
        text = succeed("compare", "-m", measured_file, *self.ARGUMENTS, "--plot", "c.svg").stdout
        assert all(f"{mode} {target}" in text for mode in ("width", "depth") for target in (0.6, 0.8))
        assert all(word in text for word in ("magnitude", "random", "tau to oracle", "Unpruned"))
        assert Path("c.svg").stat().st_size > 5000

    def test_json_has_every_cell(self, measured_file):
        """2 scorers x 2 targets x 2 modes, and the network, which a report of it draws."""
        data = json.loads(succeed("compare", "-m", measured_file, *self.ARGUMENTS, "--json").stdout)
        assert len(data["cells"]) == 8
        assert {cell["scorer"] for cell in data["cells"]} == {"magnitude", "random"}
        assert all(scoring["dollars"] is None for scoring in data["scorings"])
        Path("compared.json").write_text(json.dumps(data), encoding="utf-8")
        succeed("report", "compared.json", "--out", "compared.html")
        assert data["graph"]["blocks"][0]["id"] in Path("compared.html").read_text(encoding="utf-8")

    def test_limits_hold_in_every_cell(self, measured_file):
        """The options of a plan mean what they mean in `prune`; what they make impossible is a row that says why."""
        few = ("--scorers", "taylor", "--targets", "0.6", "--seeds", "1", "--recovery-steps", "0", "--json")
        common = ("compare", "-m", measured_file, *few)
        bounds = ("--floor", "blocks.0.conv1=0.9", "--ceiling", "blocks.1.conv1=12")
        limits = (*bounds, "--keep", "head", "--round-to", "2", "--allocation", "blocks")
        data = json.loads(succeed(*common, *limits, "--metric", "params").stdout)
        wanted = {"floors": {"blocks.0.conv1": 0.9}, "ceilings": {"blocks.1.conv1": 12}, "keep": ["head"], "round_to": 2}
        assert data["settings"].items() >= (wanted | {"metric": "params", "allocation": "blocks"}).items()
        plan = json.loads(succeed("prune", "-m", measured_file, "-s", "taylor", "--plan-only", *limits, "--json").stdout)["plan"]
        assert json.loads(succeed(*common, *limits).stdout)["cells"][0]["macs"] == plan["macs"]
        held = json.loads(succeed(*common, "--floor", "*=1.0").stdout)
        assert "the floors hold" in held["cells"][0]["error"]

    def test_a_journal_is_resumed(self, measured_file):
        """The second run measures only the new scorer."""
        common = ("compare", "-m", measured_file, "--targets", "0.6", "--seeds", "1", "--recovery-steps", "0", "--journal", "j.jsonl")
        succeed(*common, "--scorers", "magnitude")
        again = succeed(*common, "--scorers", "magnitude,random", "--resume")
        assert "magnitude, width" not in again.stderr
        assert "random, width" in again.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--scorers", "magnitud"), "Did you mean 'magnitude'"),
            (("--modes", "wide"), "Unknown mode"),
            (("--resume",), "--journal"),
            (("--llm-model", "x"), "uses no language model"),
            (("--fake-weights",), "--fake-weights"),
        ],
    )
    def test_mistakes_are_told(self, measured_file, arguments, message):
        """With exit code 2 and one message."""
        assert message in fail("compare", "-m", measured_file, *arguments)


def test_a_loss_with_noise_is_fixed_for_measuring_and_fresh_for_training(measured_file):
    """The measuring loss draws the same noise on every call, the training loss goes on drawing."""
    import torch

    measured_file.write_text(NETWORK + "def loss(model, batch):\n    return torch.randn(())\n")
    file = load_model_file("net.py")
    measuring, training = file.loss_fn, file.training_loss_fn
    assert measuring(None, None) == measuring(None, None)
    assert training(None, None) != training(None, None)
    torch.manual_seed(3)
    first = training(None, None)
    torch.manual_seed(3)
    assert training(None, None) == first


def test_validation_batches_are_checked_like_calibration_batches(measured_file):
    """None without the function; a bare tensor is refused by name."""
    assert load_model_file("net.py").validation_batches() is None
    measured_file.write_text(NETWORK + MEASURED + "def validation_batches():\n    return torch.zeros(3)\n")
    message = fail("search", "-m", measured_file, "-p", "random")
    assert "validation_batches()" in message
    assert run("search", "--help").exit_code == 0
