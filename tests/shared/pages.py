"""The pages of the documentation as data: fenced blocks with their markers, commands, and what stands in line."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click

from proxyprune.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")])

MARKERS = ("not run", "shortened", "given")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (?P<kind>[a-z ]+): (?P<text>[^>]+?) -->")


@dataclass(frozen=True)
class Fence:
    """A fenced block.

    Attributes:
        page: The file it stands in.
        line: Of its opening.
        language: First word behind the opening.
        title: File name that it is shown under, or "".
        code: What is inside, without the indentation of the fence.
        markers: What the comments directly above say, by kind:
            `not run: REASON`: checked for grammar only;
            `shortened: COMMAND OPTIONS; COMMAND OPTIONS`: run with these options added, because as written it takes minutes;
            `given: NAME, NAME`: Python names that the reader has already.
    """

    page: Path
    line: int
    language: str
    title: str
    code: str
    markers: dict[str, str]

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """Lines, with the ones that end in a backslash continued."""
        return self.code.replace("\\\n", " ").splitlines()

    @property
    def commands(self) -> list[list[str]]:
        """Words of every line behind a prompt."""
        return [shlex.split(line[2:], comments=True) for line in self.lines if line.startswith("$ ")]

    @property
    def output(self) -> list[str]:
        """Lines without a prompt: what the commands print, as far as it is shown; "..." stands for lines that are left out."""
        return [line for line in self.lines if line.strip() not in ("", "...") and not line.startswith("$ ")]

    def shortening(self, words: list[str]) -> list[str]:
        """Options to add to a command."""
        for part in filter(None, self.markers.get("shortened", "").split(";")):
            added = shlex.split(part)
            first = next(place for place, word in enumerate(added) if word.startswith("-"))
            if words[1 : 1 + first] == added[:first]:
                return added[first:]
        return []


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> list[Fence]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, _, attributes = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', attributes)
        code = textwrap.dedent(match["code"]) if match["indent"] else match["code"]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Fence(page, line, language, title[1] if title else "", code, _markers_above(text[: match.start()])))
    return found


def _markers_above(text: str) -> dict[str, str]:
    """Comments on the lines directly above, blank lines aside."""
    found = {}
    for line in reversed(text.rstrip().splitlines()):
        marker = _MARKER.fullmatch(line.strip())
        if marker is None:
            break
        found[marker["kind"]] = marker["text"]
    return found


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline(page: Path) -> list[str]:
    """Every code span outside of fenced blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def command_named(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words begin with, and the words behind its name; a group when they name no command of it."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Let the parser read a command line, that of a command within a group too; it raises what it would tell the user."""
    command, rest = command_named(words)
    command.make_context(str(command.name), list(rest))


def option_names(command: click.Command) -> set[str]:
    """Every option of a command and of those below it."""
    own = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "--version"}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*(option_names(inner) for inner in below))
