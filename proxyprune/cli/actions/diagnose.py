"""Show what works on this machine, and what to do about the rest."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from proxyprune.cli.diagnosis.data_sets import available
from proxyprune.cli.diagnosis.diagnosis import Diagnosis, Package
from proxyprune.cli.diagnosis.examine import examine
from proxyprune.cli.output.console import output


def diagnose(*, as_json: bool) -> bool:
    """Print the diagnosis; return True when everything works that should."""
    with output(as_json) as out:
        with out.stage("Looking around"):
            diagnosis = examine(available())
        out.show(*_shown(diagnosis))
        out.emit(diagnosis.to_dict())
    return not diagnosis.problems


def _shown(diagnosis: Diagnosis) -> list[RenderableType]:
    lines: list[RenderableType] = [
        _place(diagnosis),
        _packages(diagnosis),
        _extras(diagnosis),
        _data_sets(diagnosis),
        _scorers(diagnosis),
        _time_tables(diagnosis),
    ]
    if not diagnosis.problems:
        return [*lines, Text("\nEverything that should work does.", style="green")]
    return [*lines, Text("\nProblems:", style="bold red"), *(Text(f"• {problem}") for problem in diagnosis.problems)]


def _place(diagnosis: Diagnosis) -> Table:
    table = _table("Here")
    table.add_row("proxyprune", diagnosis.version)
    table.add_row("Python", diagnosis.python)
    table.add_row("system", f"{diagnosis.system}, {diagnosis.cores} cores")
    for device in diagnosis.devices:
        table.add_row(f"device {device.name}", device.description if device.problem is None else device.problem)
    for name, is_set in diagnosis.keys.items():
        table.add_row(name, "set" if is_set else "not set")
    return table


def _packages(diagnosis: Diagnosis) -> Table:
    table = _table("Requirements")
    for package in diagnosis.packages:
        if not package.extra:
            table.add_row(package.name, package.wanted, _found(package))
    return table


def _extras(diagnosis: Diagnosis) -> Table:
    table = _table("Extras")
    for extra, lacking in diagnosis.extras.items():
        state = f'lacks {", ".join(p.name for p in lacking)}: pip install "proxyprune[{extra}]"' if lacking else "complete"
        table.add_row(extra, state)
    return table


def _data_sets(diagnosis: Diagnosis) -> Table:
    table = _table("Data sets")
    for data_set in diagnosis.data_sets:
        table.add_row(data_set.name, data_set.place or f"not here: {data_set.advice}")
    return table


def _scorers(diagnosis: Diagnosis) -> Table:
    table = _table("Scorers")
    for name, origin, error in diagnosis.scorers:
        table.add_row(name, origin, "works" if error is None else "cannot be used (see below)")
    if not diagnosis.scorers:
        table.add_row("not tried, because torch cannot be imported")
    return table


def _time_tables(diagnosis: Diagnosis) -> Table:
    table = _table("Cost tables for budgets of time")
    for entry in diagnosis.time_tables:
        table.add_row(f"{entry.calls} op calls, {entry.networks} networks", entry.machine, entry.path)
    if not diagnosis.time_tables:
        table.add_row("none yet; prune --metric time makes one")
    return table


def _found(package: Package) -> str:
    return package.found or "missing"


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
