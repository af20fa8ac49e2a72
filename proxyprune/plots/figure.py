"""Figure canvas, rows with names, and writing to PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxyprune.errors import StorageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = (".png", ".svg", ".pdf")


DOTS_PER_INCH = 130


_INCHES_PER_ROW = 0.21


_INCHES_AROUND = 1.22  # title, legend and axis labels


_TALLEST_INCHES = 160.0  # 20,800 pixels; more than 700 rows get closer together instead


ROW_FONT = 8.0


_INCHES_PER_LETTER = 0.066  # of the row font, for the margin that holds the names


_GRID_COLOUR = "#E6E6E6"


@dataclass(frozen=True)
class Rows:
    """Names down the left side, from the top."""

    names: Sequence[str]

    @property
    def height(self) -> float:
        """Inches for all rows."""
        return max(1.0, min(_INCHES_PER_ROW * len(self.names), _TALLEST_INCHES - _INCHES_AROUND))

    @property
    def font(self) -> float:
        """Points; smaller than usual only when the rows had to move together."""
        return min(ROW_FONT, self.height / max(1, len(self.names)) / _INCHES_PER_ROW * ROW_FONT)

    @property
    def margin(self) -> float:
        """Inches for the longest name."""
        return 0.3 + _INCHES_PER_LETTER * max((len(name) for name in self.names), default=0)


def check_plot_path(path: str | Path) -> Path:
    """Refuse a path that no plot can be written to, before any work is done for it.

    Raises:
        StorageError: If the suffix is none of `FORMATS`, or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise StorageError(f"A plot can be written as {', '.join(FORMATS)}; {path} ends in '{path.suffix}'. Choose one of these endings.")
    if not path.parent.is_dir():
        raise StorageError(f"The plot {path} cannot be written: there is no folder {path.parent}. Create it first.")
    return path


def new_canvas(rows: Rows, *, panels: int) -> tuple[Figure, tuple[Axes, ...]]:
    """Return a figure with panels side by side, high enough for the rows."""
    from matplotlib.figure import Figure

    panel_inches = 7.0 / panels
    gap = 0.25
    width = rows.margin + panels * (panel_inches + gap) + 0.1
    height = rows.height + _INCHES_AROUND
    figure = Figure(figsize=(width, height))
    places = []
    for panel in range(panels):
        left = rows.margin + panel * (panel_inches + gap)
        places.append(figure.add_axes((left / width, 0.55 / height, panel_inches / width, rows.height / height)))
    return figure, tuple(places)


def label_rows(axes: Axes, rows: Rows, *, names: bool = True) -> None:
    """Write the names of the rows down the left side."""
    axes.set_ylim(len(rows.names) - 0.4, -0.6)
    axes.set_yticks(range(len(rows.names)), rows.names if names else [""] * len(rows.names), fontsize=rows.font)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=ROW_FONT)
    axes.xaxis.label.set_fontsize(ROW_FONT + 1)
    axes.grid(axis="x", color=_GRID_COLOUR)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def add_title(figure: Figure, text: str) -> None:
    """Write a title across the top left."""
    figure.text(0.012, 1.0 - 0.2 / figure.get_figheight(), text, fontsize=11, va="center", ha="left")


def write_figure(figure: Figure, path: Path) -> None:
    """Save a figure; the same picture is the same file.

    Raises:
        StorageError: If it cannot be written.
    """
    # Without dates and with fixed ids, the same picture is the same file.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "proxyprune"}):
        try:
            figure.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
        except OSError as error:
            raise StorageError(f"The plot {path} cannot be written: {error.strerror or error}. Choose another place.") from error
