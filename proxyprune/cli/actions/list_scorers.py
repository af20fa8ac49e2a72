"""List the registered scorers."""

from __future__ import annotations

from proxyprune.cli.output.console import output
from proxyprune.cli.output.payloads import scorers_payload
from proxyprune.cli.output.tables import scorers_table
from proxyprune.scoring.registry import scorers


def list_scorers(*, as_json: bool) -> None:
    """Print each scorer with its origin, its needs and its error."""
    with output(as_json) as out:
        infos = scorers()
        out.show(scorers_table(infos))
        out.emit(scorers_payload(infos))
