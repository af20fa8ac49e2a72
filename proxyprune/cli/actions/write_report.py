"""Write any result as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.output.console import output
from proxyprune.reporting import read_result
from proxyprune.reporting.compose import compose
from proxyprune.reporting.html import check_place, default_place, render_page, write_page

_SCHEMA = 1


def write_report(result: Path, out: Path | None, opened: str, *, as_json: bool) -> None:
    """Read the result, write the page, and open it if asked to.

    Args:
        result: Folder or file.
        out: The page, or None for the default place.
        opened: "never" or "browser".
        as_json: Print JSON instead of text.
    """
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
