"""Show a network as a text graph."""

from __future__ import annotations

from proxyprune.cli.loading import build
from proxyprune.cli.options.shared import ModelOptions
from proxyprune.cli.output.console import output
from proxyprune.cli.output.payloads import graph_payload, times_payload
from proxyprune.cli.output.tables import pinned_table, times_table
from proxyprune.measuring.timing import Timing


def describe_network(source: ModelOptions, timing: Timing | None, *, as_json: bool) -> None:
    """Trace the network and print its graph."""
    with output(as_json) as out:
        built = build(source, out)
        graph = built.trace(out)
        if timing is not None:
            graph = built.timed(graph, timing)
        out.text(graph.to_text())
        out.show(pinned_table(graph), times_table(graph))
        out.emit({**graph_payload(graph), **times_payload(graph)})
