"""The parts of a report: a page of sections, and sections of facts, tables, drawings and remarks. No HTML here but drawings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from markupsafe import Markup


@dataclass(frozen=True)
class Fact:
    """One figure of the headline.

    Attributes:
        label: What it is.
        value: The figure, short.
        detail: A line of smaller text below.
        bar: A small drawing below that, or None.
    """

    label: str
    value: str
    detail: str = ""
    bar: Markup | None = None


@dataclass(frozen=True)
class TableCell:
    """One cell of a table.

    Attributes:
        text: What it says.
        bar: A small drawing beside it, or None.
        tone: "", "strong", "quiet", "good" or "bad".
        target: Fragment of the page that it links to, or "".
        hint: Text that appears when the pointer rests on the cell, or "".
    """

    text: str
    bar: Markup | None = None
    tone: str = ""
    target: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers stand to the right."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Row:
    """Cells, and the fragment under which the row can be linked to ("" for none)."""

    cells: tuple[TableCell, ...]
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """A table; a long one scrolls in a frame of its own, and is whole in print."""

    part: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def long(self) -> bool:
        """True if it needs the frame."""
        return len(self.rows) > 24


@dataclass(frozen=True)
class Illustration:
    """A drawing with its caption.

    Attributes:
        caption: What it is.
        svg: The drawing.
        legend: CSS class of each shade, or nothing.
        natural: Keep its size and scroll sideways; others grow and shrink with the page.
        glance: The same at a glance, fitted to the page, or None.
    """

    part: ClassVar[str] = "drawing"
    caption: str
    svg: Markup
    legend: tuple[str, ...] = ()
    natural: bool = False
    glance: Markup | None = None


@dataclass(frozen=True)
class Remarks:
    """Sentences for the reader; tone is "note" or "warning"."""

    part: ClassVar[str] = "remarks"
    sentences: tuple[str, ...]
    tone: str = "note"


@dataclass(frozen=True)
class Details:
    """Names and values."""

    part: ClassVar[str] = "details"
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures as data URIs, each with its caption."""

    part: ClassVar[str] = "gallery"
    pictures: tuple[tuple[str, str], ...]


Part: TypeAlias = "Table | Illustration | Remarks | Details | Gallery"


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        id: Its fragment.
        title: Its heading.
        lead: One sentence that says how to read it.
        parts: What it holds.
    """

    id: str
    title: str
    lead: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Heading.
        kind: What kind of result it shows.
        summary: One sentence.
        facts: The headline's figures.
        sections: In order.
    """

    title: str
    kind: str
    summary: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
