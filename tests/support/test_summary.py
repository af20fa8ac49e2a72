"""Summaries: what fits 80 columns, in which order a narrow table gives way, and the same content as HTML."""

from __future__ import annotations

import pytest

from proxyprune.support.summary import Bar, Summary, SummaryTable, bar, shortened

TABLE = SummaryTable(
    ("name", "kind", "score", ""),
    (("encoder.blocks.11.attention", "attention", "0.125", Bar(0.125)), ("head", "linear", "1.000", Bar(1.0))),
    optional=("kind",),
)


def widths(table: SummaryTable, width: int) -> list[str]:
    return [" ".join(text for text, _ in cells) for cells in table.lines(width)]


@pytest.mark.parametrize("width", range(24, 100))
def test_no_line_is_wider_than_asked_and_numbers_are_never_cut(width):
    """Every score is whole at every width, and every line fits."""
    lines = Summary("Title of a summary", (TABLE,), ("A note that is longer than a line. " * 5,)).text(width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("0.125" in line for line in lines) == 1
    assert sum("1.000" in line for line in lines) == 1


def test_what_gives_way_first():
    """The bar shrinks, then it leaves, then the optional column, and only then do names lose their middle."""
    shown = {width: [[text for text, _ in cells] for cells in TABLE.lines(width)] for width in range(20, 80)}
    full, shrunk, without_bar, without_kind, cut = (shown[width] for width in (73, 62, 50, 38, 30))
    assert len(full[2][3]) == 20
    assert 4 <= len(shrunk[2][3]) < 20
    assert shrunk[2][3].strip() == "█" * len(shrunk[2][3])
    assert [len(cells) for cells in (shrunk[1], without_bar[1], without_kind[1])] == [4, 3, 2]
    assert without_kind[1][0] == "encoder.blocks.11.attention"
    assert "…" in cut[1][0]
    assert cut[1][0].startswith("encoder")
    assert cut[1][0].strip().endswith("attention")


@pytest.mark.parametrize(("share", "expected"), [(0.0, "    "), (0.5, "██  "), (1.0, "████"), (0.53125, "██▏ "), (7.0, "████")])
def test_bars_count_eighths(share, expected):
    """A bar is as long as its share, to an eighth of a cell, and never longer than its room."""
    assert bar(share, 4) == expected


def test_shortened_names_keep_both_ends():
    """A long name keeps its width and its ends; a short one is untouched."""
    assert shortened("abcdefghij", 7) == "abc…hij"
    assert shortened("abc", 3) == "abc"


def test_html_has_the_same_cells_and_escapes_them():
    """Names are text in HTML, whatever they hold."""
    table = SummaryTable(("name", ""), (("<b>&", Bar(0.25)),))
    text = Summary("a < b", (table,), ("note & note",))._repr_html_()
    assert "&lt;b&gt;&amp;" in text
    assert "a &lt; b" in text
    assert "width:25%" in text
    assert "note &amp; note" in text
    assert "<b>" not in text
