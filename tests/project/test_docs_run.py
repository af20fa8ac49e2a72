"""README and docs, followed page by page: what stands in their code blocks is run, in order, in a reader's folder."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import reader
from click.testing import CliRunner
from pages import PAGES, ROOT, Fence, fences, name_of

from proxyprune.cli import main

Names = dict[str, Any]
ELSEWHERE = ("make", "pip", "export", ".ci/run")
"""First words of commands that `test_docs.py` checks and nothing here runs: they set up the machine, or run these very tests."""

FOLLOWED = [page for page in PAGES if any(fence.language != "text" for fence in fences(page))]


@pytest.fixture
def names(tmp_path, monkeypatch) -> Names:
    """Yield the reader's Python session, in a folder that has what pages name; modules of that folder are forgotten afterwards."""
    reader.settle(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    before = set(sys.modules)
    session = ModuleType("page")  # registered, because dataclasses look up the module of their class
    monkeypatch.setitem(sys.modules, "page", session)
    yield session.__dict__
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None) or "") or name.partition(".")[0] == "examples":
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
def test_page(page, names):
    """Every block of the page does what it says, for a reader who goes through it from top to bottom."""
    for fence in fences(page):
        RUNNERS[fence.language](fence, names)


def follow_console(fence: Fence, names: Names) -> None:
    """Run the commands of a block, unless a comment says why not; what is shown below a command is what it prints."""
    if "not run" in fence.markers:
        return
    printed: set[str] = set()
    for words in fence.commands:
        if words[0] in ELSEWHERE:
            continue
        assert words[0] == "proxyprune", f"{fence}: {words[0]!r} is not run: say why above the block, <!-- not run: REASON -->"
        done = CliRunner().invoke(main, [*words[1:], *fence.shortening(words)])
        assert done.exit_code == 0, f"{fence}: {' '.join(words)}\n{done.output}\n{done.exception!r}"
        printed |= {" ".join(line.split()) for line in done.output.splitlines()}
    for shown in fence.output:
        assert " ".join(shown.split()) in printed, f"{fence}: not printed: {shown}"


def follow_python(fence: Fence, names: Names) -> None:
    """Run a block in the page's session, or write it to the file whose name it bears and run that."""
    if "not run" in fence.markers:
        return
    if not fence.title:
        wanted = [name for name in fence.markers.get("given", "").split(", ") if name]
        names |= reader.given(wanted)
        exec(compile(fence.code, str(fence), "exec"), names)
        return
    Path(fence.title).write_text(fence.code, encoding="utf-8")
    if fence.title.startswith("test_"):
        path = os.pathsep.join((str(Path.cwd()), str(ROOT)))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", fence.title]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout
    else:
        runpy.run_path(fence.title, run_name="__main__")


def follow_toml(fence: Fence, names: Names) -> None:
    """Write a block to the file whose name it bears; it must be valid."""
    tomllib.loads(fence.code)
    Path(fence.title).write_text(fence.code, encoding="utf-8")


def follow_text(fence: Fence, names: Names) -> None:
    """Return a drawing, or a line for a start-up file; `test_docs.py` looks at both."""


RUNNERS: dict[str, Callable[[Fence, Names], None]] = {
    "console": follow_console,
    "python": follow_python,
    "toml": follow_toml,
    "text": follow_text,
    **dict.fromkeys(("bash", "zsh", "fish"), follow_text),
}
