"""What is distributed is whole, and a plain installation says which extra is missing. `make wheel` does it in an empty environment."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from proxyprune.errors import MissingExtraError
from proxyprune.support.extras import EXTRAS, explained, how_to_install

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("check_wheel", ROOT / "scripts" / "check_wheel.py")
assert SPEC is not None
assert SPEC.loader is not None
check_wheel = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_wheel)

BLOCKED = """
import json, sys

class Without:
    "A finder that does not see some packages."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from click.testing import CliRunner
from proxyprune.cli import main
for command in json.loads(sys.stdin.read()):
    done = CliRunner().invoke(main, command.split())
    kind = None if done.exception is None else type(done.exception).__name__
    print(json.dumps({{"code": done.exit_code, "kind": kind, "said": " ".join(done.output.split())}}))
"""


@pytest.mark.slow
def test_archives_are_whole(tmp_path):
    """Wheel and sdist build, and hold every file of the package: templates, weights and the mark of a typed package."""
    wheel, sdist = check_wheel.build(tmp_path)
    assert check_wheel.missing_files(wheel, sdist) == []
    endings = {Path(name).suffix for name in check_wheel.wanted_files()}
    assert {".py", ".safetensors", ".html", ".css", ".txt"} <= endings
    assert "proxyprune/py.typed" in check_wheel.wanted_files()


@pytest.mark.slow
def test_missing_extras_are_named(tmp_path):
    """Without the packages of the extras, every command that needs one exits with 2 and says what to install, in one message."""
    (tmp_path / "net.py").write_text(check_wheel.NETWORK, encoding="utf-8")
    packages = {package for packages in EXTRAS.values() for package in packages}
    commands = [command for command, _ in check_wheel.LACKS]
    code = BLOCKED.format(blocked=packages)
    environment = check_wheel.without_keys() | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(commands), capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    for (command, expected), line in zip(check_wheel.LACKS, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        assert (found["code"], found["kind"]) == (2, "SystemExit"), f"{command}: {found}"
        assert expected in found["said"], command


def test_every_extra_is_known():
    """The table has every extra of pyproject.toml that commands use, and a name to import for each of its packages."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"all", "dev", "docs"}
    for extra, packages in EXTRAS.items():
        assert len(packages) == len({Requirement(line).name for line in extras[extra]}), extra


def test_other_missing_modules_pass():
    """A module that no extra brings is not explained away."""
    assert how_to_install("somebodys_module") is None
    with pytest.raises(ModuleNotFoundError), explained():
        raise ModuleNotFoundError("No module named 'somebodys_module'", name="somebodys_module")
    with pytest.raises(MissingExtraError, match=r'^Drawing needs the package PIL.*proxyprune\[diffusion\]"$'), explained("Drawing"):
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL.Image")


def test_the_oldest_torch_that_is_tested_is_the_oldest_that_is_allowed() -> None:
    """`make torch-oldest` installs the lower bound of pyproject.toml."""
    (bound,) = [
        specifier.version
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
        if (requirement := Requirement(line)).name == "torch"
        for specifier in requirement.specifier
    ]
    (tested,) = re.findall(r"^TORCH_OLDEST := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert Version(tested) == Version(bound)
