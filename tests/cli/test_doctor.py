"""`proxyprune doctor`: it reports what is there, finds what is broken, and gives nothing away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import proxyprune
from proxyprune.cli import main
from proxyprune.cli.diagnosis.data_sets import fashion_mnist
from proxyprune.cli.diagnosis.diagnosis import Device, Diagnosis, Package
from proxyprune.cli.diagnosis.examine import examine
from proxyprune.scoring.registry import BUILT_IN


def diagnosis(**changes) -> Diagnosis:
    whole = {
        "version": "1",
        "python": "3.11",
        "system": "",
        "cores": 1,
        "packages": (),
        "devices": (),
        "scorers": (),
        "keys": {},
    }
    return Diagnosis(**(whole | changes))


def test_this_environment_is_whole():
    """Where the tests run, every requirement is met, the CPU computes, and the versions are the installed ones."""
    found = examine()
    assert found.problems == ()
    assert {p.name: p.found for p in found.packages}["torch"] == metadata.version("torch")
    assert found.devices[0].name == "cpu"
    assert {"diffusion", "dev"} <= set(found.extras)
    assert "all" not in found.extras


IMPORTED = """
import json, sys
from click.testing import CliRunner
from proxyprune.cli import main
done = CliRunner().invoke(main, ["doctor", "--json"])
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1].split()))
print(json.dumps([done.exit_code, repr(done.exception), json.loads(done.stdout), heavy]))
"""


def doctor_elsewhere(path: Path) -> tuple[int, dict[str, Any], list[str]]:
    """Run `doctor --json` in a process that finds packages in a folder first; its exit code, its findings and the packages imported."""
    packages = "torch transformers diffusers accelerate datasets scipy networkx matplotlib openai anthropic mcp onnx sklearn torch_pruning"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(Path(proxyprune.__file__).parents[1])])}
    command = [sys.executable, "-c", IMPORTED, packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, _, found, heavy = json.loads(done.stdout.splitlines()[-1])
    return code, found, heavy


def test_packages_are_looked_up_and_not_imported(tmp_path):
    """Of the heavy packages only torch is imported, to try the devices; the versions of the others come from their metadata."""
    code, found, heavy = doctor_elsewhere(tmp_path)
    assert code == 0
    assert heavy == ["torch"]
    versions = {package["name"]: package["found"] for package in found["packages"]}
    assert versions["transformers"] == metadata.version("transformers")
    assert len(found["scorers"]) >= len(BUILT_IN)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("raise OSError('libtorch_cpu.so: cannot open shared object file')", "OSError: libtorch_cpu.so"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "Run: pip install torch"),
    ],
)
def test_a_broken_torch_is_named(tmp_path, content, named):
    """An installation of torch that raises on import is the one finding, with what to do; the rest is still reported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    code, found, _ = doctor_elsewhere(tmp_path)
    assert code == 2
    (problem,) = found["problems"]
    assert problem.startswith("Device cpu: torch cannot be imported")
    assert named in problem
    assert {"digits", "fashion-mnist"} <= {data_set["name"] for data_set in found["data_sets"]}
    assert found["scorers"] == []


def test_data_sets(tmp_path):
    """Fashion-MNIST counts as found when all four files are there, gzipped or not; otherwise it says what is missing or what to install."""
    nowhere = fashion_mnist((tmp_path / "nowhere",))
    assert nowhere.place is None
    assert "dataset-fashion-mnist" in nowhere.advice
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte.gz"):
        (tmp_path / name).touch()
    assert "lacks t10k-labels-idx1-ubyte" in fashion_mnist((tmp_path,)).advice
    (tmp_path / "t10k-labels-idx1-ubyte").touch()
    assert fashion_mnist((tmp_path,)).place == str(tmp_path)
    told = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["data_sets"]
    assert {found["name"]: found["place"] for found in told}["digits"] == f"scikit-learn {metadata.version('scikit-learn')}"
    assert "Data sets" in CliRunner().invoke(main, ["doctor"]).stdout


@pytest.mark.parametrize(
    ("found", "wanted", "says"),
    [(None, ">=2", "is not installed"), ("1.9", ">=2,<3", "is 1.9"), ("3.0", ">=2,<3", "is 3.0"), ("2.13.0+cpu", ">=2.8", None)],
)
def test_packages(found, wanted, says):
    """A missing, too old or too new package is a problem; a local build of a fitting version is none."""
    problem = Package("torch", wanted, found).problem
    assert problem is None if says is None else says in problem


def test_problems_say_what_to_do():
    """A broken requirement, device or scorer is listed; a missing extra is not."""
    found = diagnosis(
        packages=(Package("rich", ">=13", "9.0"), Package("diffusers", ">=0.35", None, "diffusion")),
        devices=(Device("cuda:0", "GPU", "a small convolution fails: RuntimeError: no kernel image"),),
        scorers=(("mine", "my-plugin 0.1", "cannot be imported"),),
    )
    assert len(found.problems) == 3
    assert "pip install 'rich>=13'" in found.problems[0]
    assert [package.name for package in found.extras["diffusion"]] == ["diffusers"]


def test_keys_are_never_shown(monkeypatch):
    """Whether a key is set is told; its value is in neither output."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-8d1f")
    for arguments in (["doctor"], ["doctor", "--json"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert "OPENAI_API_KEY" in result.output
        assert "canary" not in result.output
    assert json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["keys"]["OPENAI_API_KEY"] is True
