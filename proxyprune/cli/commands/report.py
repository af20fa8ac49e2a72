"""`proxyprune report`: any result as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import file_option, json_option


@click.command(cls=Command)
@click.argument("result", metavar="FOLDER_OR_FILE", type=click.Path(path_type=Path))
@file_option("--beside", "RUN", "Another diffusion run to compare figures and settings with.")
@file_option("--out", "FILE.html", "File of the page (default: report.html in the folder, or beside the file).")
@click.option(
    "--open",
    "opened",
    type=click.Choice(["never", "browser"]),
    default="never",
    show_default=True,
    help="Show the page in the default browser.",
)
@json_option
@traceback_option
def report(result: Path, beside: Path | None, out: Path | None, opened: str, as_json: bool) -> None:
    """Write any result as a single HTML page.

    The result is a folder written by prune, search, pp.save or a diffusion run; a plan; the memory of a search; or the --json output of
    score, prune, search, compare, describe or diffusion evaluate. In the folder of a diffusion run, evaluation.json is included.
    """
    from proxyprune.cli.actions.write_report import write_report

    write_report(result, beside, out, opened, as_json=as_json)
