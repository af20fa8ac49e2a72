"""The command line: what each command prints and writes, and that every error is one clear message with exit code 2."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from commands import MEASURED, NETWORK, fail, run, succeed
from safetensors.torch import save_model

from proxyprune import PrunePlan
from proxyprune.cli import main
from proxyprune.cli.options.shared import BoundType
from proxyprune.errors import ModelFileError
from proxyprune.modelfile import load_model_file
from proxyprune.scoring import Ranking

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_file(tmp_path, monkeypatch) -> Path:
    """Return a model file in an otherwise empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    return Path("net.py")


class TestHelp:
    """Every command says what it is for."""

    def test_lists_the_commands(self):
        """`--help` has a line for each command, with the beginning of what it does."""
        lines = dict(line.split(maxsplit=1) for line in succeed("--help").stdout.partition("Commands:")[2].strip().splitlines())
        assert set(lines) == set(main.commands)
        assert lines["score"] == "Rank the blocks of a network by importance."

    @pytest.mark.parametrize("command", sorted(main.commands))
    def test_every_option_is_explained(self, command):
        """No option is without a help text."""
        for option in main.commands[command].params:
            if isinstance(option, click.Argument):  # the command's own text says what it takes
                continue
            assert isinstance(option, click.Option)
            assert option.help, option.name
        text = succeed(command, "--help").stdout
        assert text.startswith(f"Usage: main {command} ")
        assert all(option.opts[0] in text for option in main.commands[command].params if isinstance(option, click.Option))

    def test_unknown_command(self):
        """A misspelt command is an error with exit code 2."""
        assert "No such command 'prun'" in fail("prun")

    def test_missing_model(self):
        """A command without --model names the missing option."""
        assert "Missing option '--model' / '-m'" in fail("describe")


class TestDescribe:
    """`describe` shows the graph."""

    def test_prints_the_text_graph(self, model_file):
        """The text graph stands in the output as it is, followed by what is pinned."""
        import proxyprune as pp

        file = load_model_file(model_file)
        text = pp.trace(file.build_model(), file.example_inputs()).to_text()
        assert text in succeed("describe", "--model", model_file).stdout

    def test_json_is_pure(self, model_file):
        """The output is one JSON document, although the model file prints; the print went to stderr."""
        result = succeed("describe", "--model", model_file, "--json")
        data = json.loads(result.stdout)
        assert "a model file may print" in result.stderr
        assert [block["id"] for block in data["blocks"]] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
        assert data["macs"] == sum(block["macs"] for block in data["blocks"])
        assert data["model_class"] == "Net"

    def test_same_bytes_in_a_fresh_process(self, model_file):
        """A process with another hash seed prints the same bytes as this one."""
        seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "COLUMNS": "160"}
        command = [sys.executable, "-m", "proxyprune", "describe", "--model", str(model_file)]
        there = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        assert there == succeed("describe", "--model", model_file).stdout.encode()
        assert b"blocks.1" in there

    def test_named_factory(self, model_file):
        """FILE.py:FACTORY builds another network."""
        data = json.loads(succeed("describe", "--model", f"{model_file}:build_wide", "--json").stdout)
        assert data["blocks"][0]["widths"] == [3, 24]

    def test_fake_weights_describe_the_same(self, model_file):
        """Without memory for weights the description is the same."""
        real, fake = (succeed("describe", "--model", model_file, "--json", *extra).stdout for extra in ((), ("--fake-weights",)))
        assert json.loads(real) == json.loads(fake)


class TestScore:
    """`score` ranks the blocks."""

    def test_json_is_a_ranking(self, model_file):
        """The JSON reads back as a ranking over all blocks."""
        data = json.loads(succeed("score", "--model", model_file, "--scorer", "random", "--seed", "3", "--json").stdout)
        ranking = Ranking.from_dict(data)
        assert set(ranking.scores) == {"stem", "blocks.0", "blocks.1", "blocks.2", "head"}
        assert ranking.seed == 3
        assert list(ranking.order) == data["order"]

    def test_table_and_plot(self, model_file):
        """Every block has a row, most important first, and the plot is a PNG."""
        result = succeed("score", "--model", model_file, "--scorer", "random", "--plot", "r.png")
        ranking = Ranking.from_dict(json.loads(succeed("score", "--model", model_file, "--scorer", "random", "--json").stdout))
        places = [result.stdout.index(f"  {block} ") for block in ranking.order]
        assert places == sorted(places)
        assert Path("r.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("scorer", ["magnitude", "taylor", "ablation", "random"])
    def test_every_built_in_scorer(self, model_file, scorer):
        """Each scorer works from the command line when the model file gives what it needs."""
        model_file.write_text(NETWORK + MEASURED)
        data = json.loads(succeed("score", "--model", model_file, "--scorer", scorer, "--json").stdout)
        assert data["scorer"] == scorer
        assert all(0.0 <= value <= 1.0 for value in data["scores"].values())

    def test_missing_batches(self, model_file):
        """A scorer that measures says which functions the model file has to define."""
        message = fail("score", "--model", model_file, "--scorer", "taylor")
        assert "calibration_batches()" in message
        assert "loss(model, batch)" in message

    def test_batches_are_not_made_in_vain(self, model_file):
        """A scorer that reads weights does not run the user's calibration code."""
        model_file.write_text(NETWORK + "\ndef calibration_batches():\n    raise RuntimeError('asked for data')\n")
        succeed("score", "--model", model_file, "--scorer", "magnitude")
        assert "asked for data" in fail("score", "--model", model_file, "--scorer", "taylor")

    def test_misspelt_scorer(self, tmp_path):
        """The closest name is suggested, before the model file is run."""
        broken = tmp_path / "broken.py"
        broken.write_text("raise RuntimeError")
        assert "Did you mean 'magnitude'?" in fail("score", "--model", broken, "--scorer", "magnitud")

    def test_weights_are_loaded(self, model_file):
        """--weights changes what magnitude sees."""
        model = load_model_file(model_file).build_model()
        with torch.no_grad():
            model.blocks[1].conv1.weight.mul_(100.0)
        save_model(model, "w.safetensors")
        ranking = json.loads(succeed("score", "--model", model_file, "--weights", "w.safetensors", "--json").stdout)
        assert ranking["order"][0] == "blocks.1"

    def test_weights_that_do_not_fit(self, model_file):
        """Weights of another network are refused."""
        save_model(load_model_file(f"{model_file}:build_wide").build_model(), "w.safetensors")
        assert "of another shape" in fail("score", "--model", model_file, "--weights", "w.safetensors")

    def test_weights_with_nan(self, model_file):
        """NaN in the weights is named, not ranked."""
        model = load_model_file(model_file).build_model()
        with torch.no_grad():
            model.stem.weight[0] = float("nan")
        save_model(model, "w.safetensors")
        assert "'stem.weight'" in fail("score", "--model", model_file, "--weights", "w.safetensors")


class TestPrune:
    """`prune` writes a folder that `load` reads, or a plan."""

    def test_writes_a_folder_that_loads(self, model_file):
        """The saved network has the planned cost, which is within the budget, and runs."""
        import proxyprune as pp

        result = succeed("prune", "--model", model_file, "--target", "0.6", "--out", "small", "--plot", "w.svg")
        file = load_model_file(model_file)
        small = pp.load("small", file.build_model)
        plan = PrunePlan.from_json("small/plan.json")
        graph = pp.trace(small, file.example_inputs())
        assert graph.macs == plan.macs <= 0.6 * plan.base_macs
        assert graph.params == plan.params
        assert small(file.example_inputs()).shape == (1, 5)
        assert Path("w.svg").read_text().startswith("<?xml")
        assert f"{plan.macs:,}" in result.stdout

    def test_the_printed_lines_load_it(self, model_file):
        """The lines that `prune` prints for loading work as they are."""
        result = succeed("prune", "--model", model_file, "--out", "small")
        start = result.stdout.index("import proxyprune as pp")
        code = "\n".join(line.strip() for line in result.stdout[start:].splitlines()[:4])
        namespace: dict[str, object] = {}
        exec(code, namespace)
        assert isinstance(namespace["small"], torch.nn.Module)

    def test_the_printed_report_command_works(self, model_file):
        """`prune` ends with the command for a report, which works as it is; --time is in it."""
        result = succeed("prune", "--model", model_file, "--out", "my small", "--time")
        assert re.search(r"One run takes [\d.]+ ms .* before and [\d.]+ ms .* after", " ".join(result.stdout.split()))
        words = shlex.split(result.stdout.strip().splitlines()[-1])
        assert words[:2] == ["proxyprune", "report"]
        succeed(*words[1:])
        assert "Measured time" in Path("my small/report.html").read_text()

    def test_default_folder(self, model_file):
        """Without --out the folder is named after the model file."""
        succeed("prune", "--model", model_file)
        assert Path("net-pruned/model.safetensors").is_file()

    def test_json(self, model_file):
        """--json prints plan and report, and nothing else."""
        data = json.loads(succeed("prune", "--model", model_file, "--target", "0.5", "--out", "small", "--json").stdout)
        plan = PrunePlan.from_dict(data["plan"])
        assert plan.target == 0.5
        assert data["report"]["macs"] == plan.macs
        assert data["folder"] == "small"

    def test_thop_counts_the_same_without_attention(self, model_file):
        """On a network of convolutions and linear layers thop is shown, and its share lies where ours does."""
        data = json.loads(succeed("prune", "--model", model_file, "--target", "0.5", "--out", "small", "--json").stdout)
        before, after = data["thop_macs"]
        assert after / before == pytest.approx(0.5, abs=0.02)

    def test_plan_only_then_apply(self, model_file):
        """A plan made without weights is applied later, as it is."""
        succeed("prune", "--model", model_file, "--fake-weights", "--scorer", "random", "--target", "0.6", "--plan-only", "--out", "p.json")
        assert not Path("net-pruned").exists()
        succeed("prune", "--model", model_file, "--plan", "p.json", "--out", "small")
        assert Path("small/plan.json").read_bytes() == Path("p.json").read_bytes()

    def test_a_plan_replaces_plans_only(self, model_file):
        """A plan is written over an earlier one, never over the model file or somebody's JSON."""
        for _ in range(2):
            succeed("prune", "--model", model_file, "--scorer", "random", "--plan-only", "--out", "p.json")
        Path("notes.json").write_text('{"mine": 1}')
        for taken in ("notes.json", model_file):
            before = Path(taken).read_bytes()
            assert "exists and is not a plan" in fail("prune", "--model", model_file, "--scorer", "random", "--plan-only", "--out", taken)
            assert Path(taken).read_bytes() == before

    def test_an_earlier_result_is_replaced_aloud(self, model_file):
        """The second result says that it took the first one's place."""
        first, second = (succeed("prune", "--model", model_file, "--scorer", "random").output for _ in range(2))
        assert "in place of an earlier result" not in first
        assert "in place of an earlier result" in " ".join(second.split())

    def test_same_plan_in_both_ways(self, model_file):
        """Planning alone and pruning decide the same."""
        succeed("prune", "--model", model_file, "--plan-only")
        succeed("prune", "--model", model_file)
        assert Path("net-plan.json").read_bytes() == Path("net-pruned/plan.json").read_bytes()

    def test_ranking_from_a_file(self, model_file):
        """`score --json` feeds `prune --ranking`."""
        Path("r.json").write_text(succeed("score", "--model", model_file, "--scorer", "random", "--json").stdout)
        succeed("prune", "--model", model_file, "--ranking", "r.json", "--out", "a")
        succeed("prune", "--model", model_file, "--scorer", "random", "--out", "b")
        assert Path("a/plan.json").read_bytes() == Path("b/plan.json").read_bytes()

    def test_limits_reach_the_plan(self, model_file):
        """keep, floor, ceiling, rounding, metric and mode are respected."""
        budget = ("--target", "0.8", "--metric", "params", "--mode", "both", "--round-to", "4")
        bounds = ("--keep", "blocks.0", "--floor", "blocks.1=0.5", "--ceiling", "blocks.2=16")
        succeed("prune", "--model", model_file, *budget, *bounds, "--plan-only", "--out", "p.json")
        plan = PrunePlan.from_json("p.json")
        assert plan.metric == "params"
        assert plan.mode == "both"
        assert "blocks.0" not in plan.removed_blocks
        assert not any(group.startswith("blocks.0.") for group in plan.widths)
        assert plan.options["floors"] == {"blocks.1": 0.5}
        assert plan.options["ceilings"] == {"blocks.2": 16}
        assert all(after % 4 == 0 for _, after in plan.widths.values())

    def test_depth(self, model_file):
        """Depth pruning removes a block, and the table says so."""
        result = succeed("prune", "--model", model_file, "--mode", "depth", "--target", "0.7", "--out", "small")
        removed = PrunePlan.from_json("small/plan.json").removed_blocks
        scores = json.loads(Path("small/ranking.json").read_text())["scores"]
        blocks = sorted(("blocks.0", "blocks.1", "blocks.2"), key=lambda block: scores[block])
        assert 0 < len(removed) < 3
        assert set(removed) == set(blocks[: len(removed)])
        assert all(re.search(rf"{re.escape(block)}\b.*\bremoved\b", result.stdout) for block in removed)

    def test_pinned_axes_are_listed_with_their_reason(self, model_file):
        """What cannot be cut is said, and why; groups are named by block and role, and by id with --ids."""
        model_file.write_text(NETWORK.replace("return x + self.conv2", "x = x.reshape(-1, 16, 8, 8)\n        return x + self.conv2"))
        command = ("prune", "--model", model_file, "--target", "0.8", "--out", "small")
        for arguments, groups in (
            ((), ("stem residual stream", "head outputs", "blocks.0 channels")),
            (("--ids",), ("stem.weight:0", "head.weight:0", "blocks.0.conv1.weight:0")),
        ):
            output = succeed(*command, *arguments).stdout
            assert "3 channel groups pinned, with the reason" in output
            for why, group in zip(("is not followed by the forward of blocks.0", "is an output of the model"), groups[:2], strict=True):
                assert re.search(rf"{re.escape(why)}.* 1  {re.escape(group)}", output), why
            assert re.search(rf"(?m)^{re.escape(groups[2])} +\d+ → \d+", output)
        assert not {"stem.weight:0", "head.weight:0"} & set(PrunePlan.from_json("small/plan.json").kept)

    @pytest.mark.parametrize("columns", [60, 80, 120])
    def test_tables_fit_the_terminal(self, model_file, columns):
        """Tables of a ranking and of widths fit the terminal, with every block on one line."""
        ranking = succeed("score", "--model", model_file, columns=columns).stdout
        widths = succeed("prune", "--model", model_file, "--out", "small", columns=columns).stdout.partition("Plan:")[0]
        assert max(map(len, (ranking + widths).splitlines())) <= columns
        assert all(re.search(rf"(?m)^ *\d+  {block} .*\d\.\d{{3}}", ranking) for block in ("stem", "blocks.0", "blocks.1", "head"))
        assert re.search(r"(?m)^stem residual stream +\d+ → \d+ +\d", widths)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--target", "1.7"), "1.7"),
            (("--target", "0"), "not positive"),
            (("--target", "much"), "Cannot read the target 'much'"),
            (("--target", "0.0001"), "best reachable"),
            (("--keep", "blocks.7"), "'blocks.7' matches no"),
            (("--floor", "blocks.0"), "PATTERN=VALUE"),
            (("--floor", "blocks.0=half"), "'half'"),
            (("--floor", "blocks.0=1.5"), "fraction"),
            (("--round-to", "0"), "--round-to"),
            (("--mode", "deep"), "'width', 'depth', 'both'"),
            (("--fake-weights",), "--plan-only"),
            (("--fake-weights", "--weights", "w.safetensors"), "give one of them"),
            (("--plan", "p.json", "--plan-only"), "give one of them"),
            (("--plan", "p.json", "--target", "0.5", "--scorer", "random"), "--scorer, --target"),
            (("--ranking", "r.json", "--scorer", "random"), "--ranking or --scorer"),
            (("--plan", "nowhere.json"), "nowhere.json"),
            (("--ranking", "nowhere.json"), "nowhere.json"),
            (("--ranking", "net.py"), "is not a ranking"),
            (("--plot", "plot.bmp"), ".png, .svg, .pdf"),
            (("--plot", "nowhere/plot.png"), "no folder nowhere"),
            (("--out", "net.py"), "it is a file"),
            (("--out", "."), "files that proxyprune did not write"),
            (("--out", "net.py/pruned"), "Not a directory"),
            (("--plan-only", "--out", "."), "is a folder"),
            (("--plan-only", "--out", "nowhere/p.json"), "no folder nowhere"),
        ],
    )
    def test_bad_requests(self, model_file, arguments, said):
        """Each bad request has its own message and leaves nothing behind."""
        before = {path.name for path in Path().iterdir()}
        assert said in fail("prune", "--model", model_file, *arguments)
        assert {path.name for path in Path().iterdir()} - {"__pycache__"} == before

    def test_plan_of_another_network(self, model_file):
        """A plan for another structure is refused with the differences."""
        succeed("prune", "--model", f"{model_file}:build_wide", "--plan-only", "--out", "p.json")
        assert "another" in (message := fail("prune", "--model", model_file, "--plan", "p.json")) or "fingerprint" in message

    def test_tampered_plan(self, model_file):
        """A plan that was edited by hand is refused."""
        succeed("prune", "--model", model_file, "--plan-only", "--out", "p.json")
        text = Path("p.json").read_text()
        Path("p.json").write_text(text.replace('"seed": 0', '"seed": 1'))
        assert "changed" in fail("prune", "--model", model_file, "--plan", "p.json")

    def test_ranking_of_another_network(self, model_file):
        """A ranking for other blocks is refused."""
        Path("r.json").write_text(json.dumps(Ranking({"elsewhere": 0.5}, "mine").to_dict()))
        assert "must score each" in fail("prune", "--model", model_file, "--ranking", "r.json")

    def test_foreign_folder_is_left_alone(self, model_file):
        """A folder with other files in it is not written to."""
        Path("small").mkdir()
        Path("small/thesis.txt").write_text("mine")
        assert "did not write" in fail("prune", "--model", model_file, "--out", "small")
        assert [path.name for path in Path("small").iterdir()] == ["thesis.txt"]


class TestCompensate:
    """`prune --compensate` refits what remains."""

    def test_table_folder_and_report(self, model_file):
        """The table and the saved figures name the layers that were refitted, and a plan from a file is compensated too."""
        model_file.write_text(NETWORK + MEASURED.replace("range(2)", "range(4)"))
        printed = succeed("prune", "-m", model_file, "-t", "0.5", "--compensate", "--out", "small").stdout
        assert "held-out error as cut" in printed
        assert "• Compensation" in printed
        stored = json.loads(Path("small/report.json").read_text())["compensation"]
        assert stored["held_out_batches"] == 2
        assert {entry["layer"] for entry in stored["layers"]} >= {"blocks.0.conv2", "head"}
        plan = Path("small/plan.json")
        again = json.loads(succeed("prune", "-m", model_file, "--plan", plan, "--compensate", "--out", "replayed", "--json").stdout)
        assert again["report"]["compensation"] == stored
        assert Path("small/model.safetensors").read_bytes() == Path("replayed/model.safetensors").read_bytes()

    def test_without_batches(self, model_file):
        """A model file without calibration batches is an error before anything is cut."""
        assert "defines no calibration_batches()" in fail("prune", "-m", model_file, "--compensate")

    def test_nothing_to_compensate(self, model_file):
        """--plan-only cuts nothing."""
        assert "nothing to compensate" in fail("prune", "-m", model_file, "--compensate", "--plan-only")


class TestStepsAndRecovery:
    """`prune --steps` and `prune --recover-steps`, and the loss before and after."""

    def test_steps(self, model_file):
        """The plan says in how many steps it was made, and cuts the unpruned network when it is replayed."""
        answer = json.loads(succeed("prune", "-m", model_file, "-t", "0.5", "--steps", "2", "--out", "small", "--json").stdout)
        assert answer["plan"]["options"]["steps"] == 2
        assert any("Cut in 2 steps" in note for note in answer["report"]["notes"])
        succeed("prune", "-m", model_file, "--plan", "small/plan.json", "--out", "replayed")
        assert Path("small/model.safetensors").read_bytes() == Path("replayed/model.safetensors").read_bytes()

    def test_recovery(self, model_file):
        """The loss of each stage stands in the terminal and in the JSON, for a plan from a file too."""
        model_file.write_text(NETWORK + MEASURED.replace("range(2)", "range(4)"))
        arguments = ("prune", "-m", model_file, "-t", "0.5", "--recover-steps", "8", "--learning-rate", "0.01", "--compensate")
        printed = succeed(*arguments, "--out", "small").stdout
        assert "mean loss on 1 held-out batch" in printed
        assert "after 8 steps of training" in printed
        losses = json.loads(succeed(*arguments, "--out", "small", "--json").stdout)["report"]["losses"]
        assert losses["recovered"] < losses["compensated"]
        plain = json.loads(succeed("prune", "-m", model_file, "-t", "0.5", "--out", "plain", "--json").stdout)["report"]["losses"]
        assert plain["measured_on"] == "calibration batches"
        replayed = succeed("prune", "-m", model_file, "--plan", "plain/plan.json", "--recover-steps", "8", "--out", "again", "--json")
        assert json.loads(replayed.stdout)["report"]["losses"]["recovered"] is not None

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--plan-only", "--steps", "2"), "cuts nothing"),
            (("--plan-only", "--recover-steps", "2"), "cuts nothing"),
            (("--plan", "p.json", "--steps", "2"), "--steps cannot be given with --plan"),
            (("--ranking", "r.json", "--steps", "2"), "omit one of them"),
            (("--recover-steps", "2"), "there is no loss"),
        ],
    )
    def test_conflicts(self, model_file, arguments, said):
        """Options that contradict each other, or lack a loss, are errors before anything is cut."""
        succeed("prune", "--model", model_file, "--plan-only", "--out", "p.json")
        Path("r.json").write_text(succeed("score", "--model", model_file, "--json").stdout)
        assert said in " ".join(fail("prune", "-m", model_file, *arguments).split())


class TestScorers:
    """`scorers` lists what is registered."""

    def test_table_and_json(self):
        """The built-in scorers are there, with what they need."""
        data = {entry["name"]: entry for entry in json.loads(succeed("scorers", "--json").stdout)["scorers"]}
        assert {"magnitude", "magnitude_l1", "magnitude_l2", "taylor", "ablation", "random"} <= set(data)
        assert data["random"]["needs"] == []
        assert all(entry["error"] is None for entry in data.values())
        table = succeed("scorers").stdout
        assert all(name in table for name in data)


class TestErrors:
    """How an error is shown."""

    def test_message_without_traceback(self):
        """An error is one message on stderr, stdout is empty, and the exit code is 2."""
        assert fail("describe", "--model", "nowhere.py").startswith("Error: The model file nowhere.py does not exist.")

    def test_traceback_on_request(self):
        """--traceback lets the error through with its cause."""
        result = run("describe", "--model", "nowhere.py", "--traceback")
        assert isinstance(result.exception, ModelFileError)

    def test_model_that_does_not_run_on_its_inputs(self, model_file):
        """Example inputs of a wrong shape are blamed on the inputs."""
        model_file.write_text(NETWORK.replace("torch.zeros(1, 3, 8, 8)", "torch.zeros(1, 4, 8, 8)"))
        assert "example inputs" in fail("describe", "--model", model_file)

    def test_model_that_cannot_be_traced(self, model_file):
        """Without weights, a branch on data is an error that names torch.export's reason."""
        model_file.write_text(NETWORK.replace("x = self.stem(x)", "x = self.stem(x)\n        if x.sum() > 0:\n            x = x * 2"))
        assert "torch.export cannot follow" in fail("describe", "--fake-weights", "--model", model_file)

    def test_markup_in_names_is_text(self, model_file):
        """Square brackets in a message or a path are shown, not interpreted."""
        assert "[bold]x.py" in fail("describe", "--model", "[bold]x.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mid*=0.5", ("mid*", 0.5)), ("a=32", ("a", 32)), ("a=b=1.0", ("a=b", 1.0)), ("x=1", ("x", 1))],
)
def test_bounds(text, expected):
    """A number with a point is a fraction, a whole number counts channels, and a pattern may hold an equals sign."""
    value = BoundType().convert(text, None, None)
    assert value == expected
    assert type(value[1]) is type(expected[1])
