"""README and docs: every command and name exists as it is written, every file that is named is there. `test_docs_run.py` runs them."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from pages import MARKERS, PAGES, ROOT, command_named, fences, inline, name_of, option_names, parse, prose

from proxyprune.cli import main

sys.path.insert(0, str(ROOT / "scripts"))
import site_hooks

_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
SHELLS = ("bash", "zsh", "fish")
"""Lines for start-up files; `test_start_up_lines` tries them."""
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=name_of)
COMMANDS = [(name_of(fence.page), words) for page in PAGES for fence in fences(page) for words in fence.commands]


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_is_something_to_check():
    """The pages have commands and code, so that the tests below are about something."""
    assert len([words for _, words in COMMANDS if words[0] == "proxyprune"]) >= 8
    assert len([words for _, words in COMMANDS if words[0] == "make"]) >= 5


@pytest.mark.parametrize(
    ("page", "words"),
    [found for found in COMMANDS if found[1][0] == "proxyprune"],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1:3]),
)
def test_proxyprune_commands_parse(page, words):
    """Every command line in the docs is accepted by the parser, and the example files and folders that it names exist."""
    parse(words[1:])
    for word in words[2:]:
        if word.startswith("examples/"):
            assert (ROOT / word.partition(":")[0]).exists()


@pytest.mark.parametrize("words", [words for _, words in COMMANDS if words[0] == "make"], ids=" ".join)
def test_make_targets_exist(words):
    """Every `make` target in the docs is in the Makefile."""
    assert words[1] in makefile_targets()


@pytest.mark.parametrize("words", [words for _, words in COMMANDS if words[0] not in ("make", "proxyprune")], ids=" ".join)
def test_other_commands(words):
    """What else is typed installs something that is here with extras that it has, sets a variable, or runs a script that is there."""
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.findall(r"\[([\w,]+)\]", words[-1])
        assert all(extra in extras for group in wanted for extra in group.split(","))
        assert words[-1].startswith((".", "proxyprune")) or (ROOT / words[-1]).is_dir()
    elif "proxyprune" in words and "-m" in words:  # under a launcher: [NAME=VALUE] accelerate launch ... -m proxyprune ...
        launcher = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        module = launcher[launcher.index("-m") + 1] if launcher[0] == "python" else launcher[0]
        assert importlib.util.find_spec(module) is not None
        parse(words[words.index("proxyprune") + 1 :])
    elif words[0] == "export":
        assert re.fullmatch(r"[A-Z_]+=\S+", words[1])
    else:
        assert (ROOT / words[0]).is_file()


@EVERY_PAGE
def test_code_is_in_blocks_that_are_run(page):
    """Blocks are Python, prompts with commands, TOML or plain text; markers are known; no command hides outside of a block."""
    for fence in fences(page):
        assert fence.language in ("python", "console", "toml", "text", *SHELLS), f"{fence}: {fence.language!r} is no language that is run"
        assert set(fence.markers) <= set(MARKERS), fence
        if fence.language == "console":
            assert fence.lines[0].startswith("$ "), f"{fence}: a line without a prompt is not run"
            assert not any(line.startswith("proxyprune ") for line in fence.output), f"{fence}: a command without a prompt is not run"
        if fence.language == "text":
            assert not re.search(r"^\s*(\$ |import |from \w+ import )", fence.code, re.MULTILINE), f"{fence}: this is code"
    assert not re.search(r"^\s+\$ ", prose(page), re.MULTILINE)
    assert "```" not in prose(page)


@EVERY_PAGE
def test_python_blocks_parse_and_name_public_things(page):
    """Python code in the docs is valid, and every `pp.name` in it is a public name."""
    import proxyprune as pp

    for code in (fence.code for fence in fences(page) if fence.language == "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pp":
                assert node.attr in pp.__all__, f"pp.{node.attr}"


@EVERY_PAGE
def test_names_in_line(page):
    """Commands, options, settings and public names that stand in the text exist."""
    import proxyprune as pp
    from proxyprune.diffusion.config.run_config import settings

    known = settings()
    sections = {name.partition(".")[0] for name in known if "." in name}
    for span in inline(page):
        words = span.split()
        if words[0] == "proxyprune" and len(words) > 1:
            command, rest = command_named(words[1:])
            assert command is not main or rest[0].startswith("-") or rest[0] == "|" or "|" in rest, span
            options = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert options <= option_names(command), span
        elif words[0].startswith("--"):
            assert words[0].partition("=")[0] in option_names(main), span
        for name in re.findall(r"\bpp\.(\w+)", span):
            assert name in pp.__all__, span
        setting = re.fullmatch(r"(\w+)\.(\w+)(=\S+)?", span)
        if setting and setting[1] in sections:
            assert f"{setting[1]}.{setting[2]}" in known, span


@EVERY_PAGE
def test_links_lead_somewhere(page):
    """Relative links point to files that exist."""
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).resolve().exists(), target


@pytest.mark.parametrize("shell", SHELLS)
def test_start_up_lines(shell):
    """The lines for start-up files ask the program for that shell's script; bash, which is here, runs its own and then completes."""
    page = ROOT / "docs" / "how-to" / "shell-completion.md"
    (code,) = (fence.code for fence in fences(page) if fence.language == shell)
    assert f"_PROXYPRUNE_COMPLETE={shell}_source proxyprune" in code
    if shell == "bash":
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f"{code}\ncomplete -p proxyprune"], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
        )
        assert "_proxyprune_completion" in done.stdout


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "benchmarks").glob("*.md")), ids=name_of)
def test_figures_link_to_what_was_measured(page):
    """Every section of a benchmark page that has a table or a picture links to its JSON, or the top of the page does; so does README."""
    linked = re.compile(r"\]\(\.\./\.\./benchmarks/results/[\w.-]+\.json\)")
    top, *sections = re.split(r"(?m)^## ", page.read_text(encoding="utf-8"))
    for section in sections:
        if re.search(r"(?m)^(\||!\[)", section):
            assert linked.search(section) or linked.search(top), section.partition("\n")[0]
    assert linked.search("".join((top, *sections)))


def test_the_site_has_results_and_options():
    """Links to results are rewritten for the place of the page, and the reference gets every command's options from the command."""
    found = site_hooks.on_page_markdown(
        "[a](../../benchmarks/results/a.json)", SimpleNamespace(file=SimpleNamespace(src_uri="benchmarks/index.md")), None, None
    )
    assert found == "[a](results/a.json)"
    reference = site_hooks.with_options((ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8"))
    documented = set(re.findall(r"(?m)^## proxyprune ([\w ]+)$", reference))
    assert documented == {" ".join(words) for words in every_command(main)}
    for words in every_command(main):
        section = reference.partition(f"## proxyprune {' '.join(words)}\n")[2].partition("\n## ")[0]
        for option in option_names(command_named(list(words))[0]) - {"--version", "--help"}:
            assert option in section, f"{words}: {option}"


def every_command(group: click.Group, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Words of every command that is no group."""
    found = []
    for name, command in group.commands.items():
        found += every_command(command, (*above, name)) if isinstance(command, click.Group) else [(*above, name)]
    return found
