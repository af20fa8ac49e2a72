"""Short summaries of values: the same content as text of at most 80 columns and as HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH = 80
"""Columns of a summary."""

GAP = "  "
"""Stands between columns."""
_BAR_CELLS = 20
_SMALLEST_BAR = 4
_SMALLEST_NAME = 12
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] that is drawn as long as there is room."""

    share: float


Cell = str | Bar


@dataclass(frozen=True)
class SummaryTable:
    """Rows of a summary.

    Attributes:
        headings: One for each column.
        rows: Cells; bars have a column of their own.
        names: Index of the column with names.
        left: Headings of further columns that are aligned to the left.
        optional: Headings of columns that are left out if there is no room, the last one first.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 0
    left: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def lines(self, width: int) -> Iterator[list[tuple[str, bool]]]:
        """Yield heading and rows as cells of text that fit together, and whether a cell is a bar.

        Bars shrink first and then leave; optional columns leave next; then names lose their middle.

        Args:
            width: Columns of text for a whole line.
        """
        sizes = self._sizes(width)
        for row in (self.headings, *self.rows):
            cells = []
            for index, size in sizes.items():
                cell = row[index]
                text = bar(cell.share, size) if isinstance(cell, Bar) else shortened(cell, size)
                cells.append((text.ljust(size) if self.is_left(index) else text.rjust(size), isinstance(cell, Bar)))
            yield cells

    def is_bar(self, index: int) -> bool:
        """Return whether a column holds bars."""
        return any(isinstance(row[index], Bar) for row in self.rows)

    def is_left(self, index: int) -> bool:
        """Return whether a column is aligned to the left."""
        return index == self.names or self.is_bar(index) or self.headings[index] in self.left

    def _sizes(self, width: int) -> dict[int, int]:
        """Columns of text for each column that is shown."""
        columns: Sequence[Sequence[Cell]] = list(zip(self.headings, *self.rows, strict=True))
        sizes = {index: max(_BAR_CELLS if isinstance(cell, Bar) else len(cell) for cell in column) for index, column in enumerate(columns)}

        def excess() -> int:
            return max(0, sum(sizes.values()) + len(GAP) * (len(sizes) - 1) - width)

        for index in [index for index in sizes if self.is_bar(index)]:
            sizes[index] = max(sizes[index] - excess(), _SMALLEST_BAR, len(self.headings[index]))
            if excess():
                del sizes[index]
        for heading in reversed(self.optional):
            if excess():
                del sizes[self.headings.index(heading)]
        sizes[self.names] = max(sizes[self.names] - excess(), min(sizes[self.names], _SMALLEST_NAME))
        for index in sizes:  # the last resort: words such as the reason for something
            sizes[index] -= min(excess(), max(0, sizes[index] - _SMALLEST_NAME))
        return sizes


@dataclass(frozen=True)
class Summary:
    """A title, tables and sentences.

    `str()` is text, and notebooks show HTML.

    Attributes:
        title: The first line.
        tables: In order.
        notes: Sentences below the tables; they are wrapped.
    """

    title: str
    tables: tuple[SummaryTable, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """Return lines of at most `width` columns. Bars shrink first; then long names lose their middle."""
        lines = textwrap.wrap(self.title, width)
        for table in self.tables:
            lines += ["", *(GAP.join(text for text, _ in cells).rstrip() for cells in table.lines(width))] if table.rows else []
        if self.notes:
            lines.append("")
        for note in self.notes:
            lines += textwrap.wrap(f"• {note}", width, subsequent_indent="  ")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{html.escape(self.title)}</strong></p>", *(_html(table) for table in self.tables if table.rows)]
        if self.notes:
            parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in self.notes) + "</ul>")
        return "".join(parts)


def bar(share: float, cells: int) -> str:
    """Return a bar of so many cells, in steps of an eighth of a cell."""
    full, rest = divmod(round(min(1.0, max(0.0, share)) * cells * 8), 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(cells)


def shortened(name: str, width: int) -> str:
    """Return a name of at most `width` columns: a longer one loses its middle."""
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def _html(table: SummaryTable) -> str:
    """Return an HTML table; numbers are aligned to the right."""
    aligned = ["left" if table.is_left(index) else "right" for index in range(len(table.headings))]
    head = "".join(f'<th style="text-align:{side}">{html.escape(text)}</th>' for side, text in zip(aligned, table.headings, strict=True))
    rows = []
    for row in table.rows:
        cells = []
        for side, cell in zip(aligned, row, strict=True):
            if isinstance(cell, Bar):
                text = f'<div style="width:8em"><div style="width:{cell.share:.0%};height:0.8em;background:currentColor"></div></div>'
            else:
                text = html.escape(cell)
            cells.append(f'<td style="text-align:{side}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
