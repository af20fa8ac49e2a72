"""`proxyprune report`: any result as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import file_option, json_option


@click.command(cls=Command)
@click.argument("result", metavar="FOLDER_OR_FILE", type=click.Path(path_type=Path))
@file_option("--beside", "RUN", "Another diffusion run, whose figures and settings are set beside those of this one.")
@file_option("--out", "FILE.html", "The page (default: report.html in the folder, or beside the file).")
@click.option(
    "--open",
    "opened",
    type=click.Choice(["never", "browser"]),
    default="never",
    show_default=True,
    help="Show the page in the default browser when it is written.",
)
@json_option
@traceback_option
def report(result: Path, beside: Path | None, out: Path | None, opened: str, as_json: bool) -> None:
    """Write any result as one HTML page that needs nothing else.

    Takes a folder written by prune, search, pp.save or a diffusion run; a plan; a search's memory; or what score, prune, search, compare
    describe and diffusion evaluate print with --json. In the folder of a diffusion run, evaluation.json becomes part of its report.
    """
    from proxyprune.cli.actions.write_report import write_report

    write_report(result, beside, out, opened, as_json=as_json)
