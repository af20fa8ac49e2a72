"""`proxyprune report`: any result as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.shared import file_option, json_option

_SCHEMA = 1


@click.command(cls=Command)
@click.argument("result", metavar="FOLDER_OR_FILE", type=click.Path(path_type=Path))
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
def report(result: Path, out: Path | None, opened: str, as_json: bool) -> None:
    """Write any result as one HTML page that needs nothing else.

    Takes a folder written by prune, search, pp.save or a diffusion run; a plan; a search's memory; or what score, prune, search, compare
    and describe print with --json.
    """
    from proxyprune.cli.output.console import output
    from proxyprune.reporting import read_result
    from proxyprune.reporting.compose import compose
    from proxyprune.reporting.html import check_place, default_place, render_page, write_page

    with output(as_json) as console:
        target = None if out is None else check_place(out)
        found = read_result(result)
        page = compose(found)
        target = target or default_place(result)
        write_page(target, render_page(page))
        console.show(*(f"• {warning}" for warning in found.warnings))
        console.text(f"The report of this {page.kind} is in {target} ({target.stat().st_size / 1024:,.0f} kB).")
        sections = [section.title for section in page.sections]
        console.emit({"schema": _SCHEMA, "file": str(target), "kind": page.kind, "sections": sections, "warnings": list(found.warnings)})
    if opened == "browser":
        click.launch(target.resolve().as_uri())
