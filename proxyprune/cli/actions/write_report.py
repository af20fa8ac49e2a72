"""Write any result as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from proxyprune.cli.output.console import output
from proxyprune.errors import InputError
from proxyprune.reporting import read_result
from proxyprune.reporting.compose import compose
from proxyprune.reporting.html import check_place, default_place, render_page, write_page
from proxyprune.reporting.read.read_result import DIFFUSION, Result

_SCHEMA = 1


def write_report(result: Path, beside: Path | None, out: Path | None, opened: str, *, as_json: bool) -> None:
    """Read the result, write the page, and open it if asked to.

    Args:
        result: Folder or file.
        beside: Another diffusion run to set beside it, or None.
        out: The page, or None for the default place.
        opened: "never" or "browser".
        as_json: Print JSON instead of text.
    """
    with output(as_json) as console:
        target = None if out is None else check_place(out)
        found = read_result(result)
        page = compose(found, None if beside is None else _other_run(found, beside))
        target = target or default_place(result)
        write_page(target, render_page(page))
        console.show(*(f"• {warning}" for warning in found.warnings))
        console.text(f"The report of this {page.kind} is in {target} ({target.stat().st_size / 1024:,.0f} kB).")
        sections = [section.title for section in page.sections]
        console.emit({"schema": _SCHEMA, "file": str(target), "kind": page.kind, "sections": sections, "warnings": list(found.warnings)})
    if opened == "browser":
        click.launch(target.resolve().as_uri())


def _other_run(first: Result, place: Path) -> Result:
    """Read the run that another is compared with.

    Raises:
        InputError: If one of the two is no run of step-adaptive diffusion.
    """
    other = read_result(place)
    if first.kind != DIFFUSION or other.kind != DIFFUSION:
        raise InputError(
            f"--beside compares two diffusion runs, found a {first.kind} and a {other.kind}. Evaluations of several pipelines are one "
            "file: `proxyprune diffusion evaluate A --beside B --json`."
        )
    return other
