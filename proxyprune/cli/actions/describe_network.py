"""Show a network as a text graph."""

from __future__ import annotations

from proxyprune.cli.loading import build
from proxyprune.cli.options.shared import ModelOptions
from proxyprune.cli.output.console import output
from proxyprune.cli.output.payloads import graph_payload
from proxyprune.cli.output.tables import pinned_table


def describe_network(source: ModelOptions, *, as_json: bool) -> None:
    """Trace the network and print its graph."""
    with output(as_json) as out:
        graph = build(source, out).trace(out)
        out.text(graph.to_text())
        out.show(pinned_table(graph))
        out.emit(graph_payload(graph))
