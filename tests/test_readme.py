"""README and docs: every command exists as it is written, every file that is named is there."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from proxyprune.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def joined(code: str) -> list[str]:
    """Lines, with the ones that end in a backslash continued."""
    return code.replace("\\\n", " ").splitlines()


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every line that starts with a prompt."""
    lines = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for code in blocks(page, "console") for line in joined(code)]
    return [(page, shlex.split(line[2:], comments=True)) for page, line in lines if line.startswith("$ ")]


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


PROXYPRUNE_COMMANDS = [(page, words) for page, words in commands() if words[0] == "proxyprune"]


def test_there_is_something_to_check():
    """The pages have commands and code, so that the tests below are about something."""
    assert len(PROXYPRUNE_COMMANDS) >= 8
    assert len([words for _, words in commands() if words[0] == "make"]) >= 5


@pytest.mark.parametrize(
    ("page", "words"), PROXYPRUNE_COMMANDS, ids=lambda value: value if isinstance(value, str) else "-".join(value[1:3])
)
def test_proxyprune_commands_parse(page, words):
    """Every command line in the docs is accepted by the parser, and the example files that it names exist."""
    command = main.commands[words[1]]
    command.make_context(words[1], words[2:])
    for word in words[2:]:
        if word.startswith("examples/"):
            assert (ROOT / word.partition(":")[0]).is_file()


@pytest.mark.parametrize("words", [words for _, words in commands() if words[0] == "make"], ids=" ".join)
def test_make_targets_exist(words):
    """Every `make` target in the docs is in the Makefile."""
    assert words[1] in makefile_targets()


@pytest.mark.parametrize("words", [words for _, words in commands() if words[0] not in ("make", "proxyprune")], ids=" ".join)
def test_other_commands(words):
    """What else is typed installs this package with extras that it has, or runs a script that is there."""
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.findall(r"\[([\w,]+)\]", words[-1])
        assert all(extra in extras for group in wanted for extra in group.split(","))
    else:
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_parse_and_name_public_things(page):
    """Python code in the docs is valid, and every `pp.name` in it is a public name."""
    import proxyprune as pp

    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pp":
                assert node.attr in pp.__all__, f"pp.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    """Relative links point to files that exist."""
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).resolve().exists(), target


def test_readme_snippet_runs(tmp_path, monkeypatch):
    """The Python code of the README runs as it is written, on a small network."""
    import torch

    def build_model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

    (code,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    names = {
        "model": build_model(),
        "example_inputs": torch.zeros(1, 6),
        "batches": [torch.randn(8, 6, generator=torch.Generator().manual_seed(0))],
        "loss": lambda model, batch: model(batch).square().mean(),
        "build_model": build_model,
    }
    exec(code, names)
    assert names["small"](torch.zeros(1, 6)).shape == (1, 3)
