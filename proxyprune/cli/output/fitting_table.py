"""A table that fits the terminal as summaries fit 80 columns: bars shrink first, names stay on one line, numbers are never cut."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from proxyprune.support.summary import GAP, SummaryTable


@dataclass(frozen=True)
class FittingTable:
    """A title and a table, as wide as the console at most."""

    title: str
    table: SummaryTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a blank line, the title, the headings and the rows."""
        yield Text()
        yield Text(self.title, style="bold")
        for number, cells in enumerate(self.table.lines(options.max_width)):
            line = Text(style="" if number else "bold", no_wrap=True, overflow="ellipsis")
            for place, (text, is_bar) in enumerate(cells):
                line.append(GAP if place else "").append(text, style="cyan" if is_bar else "")
            line.rstrip()
            yield line
