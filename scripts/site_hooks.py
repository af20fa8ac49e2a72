"""What mkdocs cannot do alone: put the benchmarks' results into the site, and the options of every command into its reference."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
RESULTS = "benchmarks/results"
"""Folder of the checkout, and of the site."""

_TO_RESULTS = re.compile(rf"\]\((?:\.\./)+{RESULTS}/")
_LINK_UP = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>(?:\.\./)+[\w./-]+)\)")
_COMMAND = re.compile(r"^## proxyprune (?P<name>[\w ]+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Show the version in the header."""
    from proxyprune import __version__

    config.site_name = f"{config.site_name} {__version__}"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add JSON and plots of the benchmarks, which lie outside of docs/."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in (".json", ".png"):
            files.append(File.generated(config, f"{RESULTS}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to results that are right in the checkout into ones that are right in the site; list options of commands."""
    here = posixpath.dirname(page.file.src_uri)
    markdown = _TO_RESULTS.sub(f"]({posixpath.relpath(RESULTS, here or '.')}/", markdown)
    markdown = _LINK_UP.sub(lambda link: link["text"] if _only_in_checkout(here, link["path"]) else link[0], markdown)
    return with_options(markdown) if page.file.src_uri == "reference/cli.md" else markdown


def _only_in_checkout(folder: str, path: str) -> bool:
    """Return True for a file of the checkout that is no part of the site; its links become plain text."""
    inside = posixpath.normpath(posixpath.join("docs", folder, path))
    return not inside.startswith("docs/") and (ROOT / inside).is_file()


def with_options(markdown: str) -> str:
    """Return the reference of the command line, with a table of options at the end of every command's section."""
    sections = re.split(r"(?m)^(?=## )", markdown)
    found = []
    for section in sections:
        heading = _COMMAND.match(section)
        found.append(f"{section.rstrip()}\n\n{options_table(heading['name'].split())}\n\n" if heading else section)
    return "".join(found)


def options_table(words: list[str]) -> str:
    """Options of one command as Markdown, from the command itself.

    Raises:
        KeyError: If there is no such command.
    """
    from proxyprune.cli import main

    command: Any = main
    for word in words:
        command = command.commands[word]
    context = click.Context(command, info_name=" ".join(words))
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            name, text = (html.escape(part).replace("|", "&#124;") for part in record)
            rows.append(f"| <code>{name}</code> | {text} |")
    return "\n".join(rows)
