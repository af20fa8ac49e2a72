"""The drawings of a report; colours come from the page's style sheet by class, so that light, dark and print each have their own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from proxyprune.reporting.draw.svg import Named, Scale, line, picture, polyline, rect, tag, text, tick_text
from proxyprune.support.wording import quantity

BAR = 120.0

_MOST_STRETCH = 2.5


def pair_bar(before: float, after: float, most: float) -> Markup:
    """Before as an outline, after filled, both against the largest."""
    scale = BAR / most if most else 0.0
    return _small(rect(0, 2, before * scale, 8, "before", 2), rect(0, 2, after * scale, 8, "after", 2))


def share_bar(part: float) -> Markup:
    """Return a share of the whole width."""
    return _small(rect(0, 2, BAR, 8, "before", 2), rect(0, 2, BAR * min(1.0, max(0.0, part)), 8, "after", 2))


def _small(*children: Markup) -> Markup:
    return tag("svg", *children, class_="bar", viewBox=f"0 0 {BAR:g} 12", width=BAR, height=12, aria_hidden="true", focusable="false")


@dataclass(frozen=True)
class Series:
    """A line or a cloud of points.

    Attributes:
        label: For its end, "" for none.
        points: (x, y).
        class_: "line-N" or "dots", which a "fill-N line-N" may colour.
        step: Draw as stairs: a value holds until the next.
    """

    label: str
    points: Sequence[tuple[float, float]]
    class_: str
    step: bool = False


def line_chart(
    named: Named,
    series: Sequence[Series],
    labels: tuple[str, str],
    levels: Mapping[str, float] | None = None,
) -> Markup:
    """Lines and points over a common axis.

    Args:
        named: What it is called.
        series: At least one with a point.
        labels: Of the x axis and the y axis.
        levels: Horizontal lines by name.
    """
    width, height, left, right, top, bottom = 720.0, 300.0, 68.0, 130.0, 18.0, 46.0
    xs = [x for entry in series for x, _ in entry.points]
    ys = [y for entry in series for _, y in entry.points]
    near = {name: value for name, value in (levels or {}).items() if _near(value, ys)}
    ys += near.values()
    across, up = Scale.around(xs, left, width - right), Scale.around(ys, height - bottom, top)
    parts = [text(left, 11, labels[1], "axis-name"), text(width - right, height - 8, labels[0], "axis-name", "end")]
    for tick in up.ticks(5):
        parts += [line(left, up(tick), width - right, up(tick), "grid"), text(left - 8, up(tick) + 4, tick_text(tick), "tick", "end")]
    whole = all(float(x).is_integer() for x in xs)
    for tick in across.ticks(8):
        if not whole or float(tick).is_integer():
            parts.append(text(across(tick), height - bottom + 18, tick_text(tick), "tick", "middle"))
    ends: list[tuple[float, str, str]] = []
    for name, value in (levels or {}).items():
        if name in near:
            parts.append(line(left, up(value), width - right, up(value), "level"))
            ends.append((up(value), name, "level-name"))
        else:
            ends.append(
                (top if value > max(ys) else height - bottom, f"{name} {value:.4g} {'↑' if value > max(ys) else '↓'}", "level-name")
            )
    for entry in series:
        placed = [(across(x), up(y)) for x, y in entry.points]
        if entry.class_.startswith("line") and len(placed) == 1:
            x, y = placed[0]
            parts.append(tag("circle", cx=x, cy=y, r=3.5, class_=f"dot fill-{entry.class_.removeprefix('line-')} {entry.class_}"))
        elif entry.class_.startswith("line"):
            stairs = [point for (x, y), (after, _) in itertools.pairwise(placed) for point in ((x, y), (after, y))]
            parts.append(polyline([*stairs, placed[-1]] if entry.step else placed, f"line {entry.class_}"))
        else:
            parts += [tag("circle", cx=x, cy=y, r=3.5, class_=f"dot {entry.class_}") for x, y in placed]
        if entry.label and placed:
            ends.append((placed[-1][1], entry.label, f"end-{entry.class_}"))
    for y, label, class_ in _apart(ends, 15.0):
        parts.append(text(width - right + 8, y + 4, label, f"end {class_}"))
    return picture(named, width, height, *parts)


def _near(level: float, values: Sequence[float]) -> bool:
    """Return True if a level can be drawn without pressing the values together."""
    low, high = min(values), max(values)
    return max(high, level) - min(low, level) <= _MOST_STRETCH * (high - low)


def _apart(labels: Sequence[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Labels moved down so far that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for y, label, class_ in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, label, class_))
    return placed


@dataclass(frozen=True)
class DotRow:
    """Values of one row of a dot plot; the line runs one deviation to each side of the mean."""

    label: str
    values: Sequence[float]
    mean: float
    deviation: float


def dot_plot(named: Named, rows: Sequence[DotRow], axis: str, level: tuple[str, float] | None = None) -> Markup:
    """Every value as a dot, the mean as a bar across, the deviation as a line; one row a label."""
    left = min(220.0, 20.0 + 7.2 * max(len(row.label) for row in rows))
    width, right, top, pitch = 720.0, 24.0, 26.0 if level else 12.0, 30.0
    height = top + pitch * len(rows) + 44.0
    values = [value for row in rows for value in (*row.values, row.mean - row.deviation, row.mean + row.deviation)]
    shown = level is not None and _near(level[1], values)
    across = Scale.around([*values, *([level[1]] if level is not None and shown else [])], left, width - right)
    bottom = top + pitch * len(rows)
    parts = [text(width - right, height - 6, axis, "axis-name", "end")]
    for tick in across.ticks(6):
        parts += [line(across(tick), top, across(tick), bottom, "grid"), text(across(tick), bottom + 18, tick_text(tick), "tick", "middle")]
    if level is not None and not shown:
        below = level[1] < min(values)
        told = f"← {level[0]} {level[1]:.4g}" if below else f"{level[0]} {level[1]:.4g} →"
        parts.append(text(left if below else width - right, top - 11, told, "level-name", None if below else "end"))
    elif level is not None:
        x = across(level[1])
        parts += [line(x, top - 6, x, bottom, "level"), text(x, top - 11, level[0], "level-name", "middle")]
    for index, row in enumerate(rows):
        y = top + pitch * (index + 0.5)
        parts.append(text(left - 12, y + 4, _short(row.label), "row-name", "end"))
        parts.append(line(across(row.mean - row.deviation), y, across(row.mean + row.deviation), y, "whisker"))
        parts += [tag("circle", cx=across(value), cy=y, r=4.0, class_="dot dots") for value in row.values]
        parts.append(line(across(row.mean), y - 9, across(row.mean), y + 9, "mean"))
    return picture(named, width, height, *parts)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def interval_strip(named: Named, ranges: Sequence[tuple[str, str, float, float]], axis: str) -> Markup:
    """Intervals side by side: (name, what it says below, width, height in [0, 1])."""
    width, left, right, top, tall = 720.0, 44.0, 16.0, 26.0, 150.0
    total = sum(entry[2] for entry in ranges) or 1.0
    parts = [text(left, 12, axis, "axis-name")]
    for level in (0.0, 0.5, 1.0):
        y = top + tall * (1 - level)
        parts += [line(left, y, width - right, y, "grid"), text(left - 6, y + 4, f"{100 * level:.0f} %", "tick", "end")]
    x = left
    for index, (name, below, size, high) in enumerate(ranges):
        span = (width - left - right) * size / total
        parts.append(rect(x + 1, top, span - 2, tall, "before", 3))
        parts.append(rect(x + 1, top + tall * (1 - high), span - 2, tall * high, f"fill-{index % 6}", 3))
        if span > 34:
            parts.append(text(x + span / 2, top + tall + 17, name, "row-name", "middle"))
        if span > 84:
            parts.append(text(x + span / 2, top + tall + 33, below, "tick", "middle"))
        x += span
    return picture(named, width, top + tall + 42, *parts)


def stacked_bar(named: Named, pieces: Sequence[tuple[str, float, str]], limit: float | None) -> Markup:
    """Return what was spent, piece by piece (name, size, CSS class), against a limit."""
    width, left, right, top, tall = 720.0, 4.0, 12.0, 22.0, 34.0
    total = sum(size for _, size, _ in pieces)
    across = Scale(0.0, max(total, limit or 0.0) or 1.0, left, width - right)
    parts, at = [], 0.0
    for name, size, class_ in pieces:
        start, stop = across(at), across(at + size)
        parts.append(rect(start, top, max(0.5, stop - start - 1), tall, class_, 2, tag("title", f"{name}: {quantity(size)} MACs")))
        if stop - start > 8.0 * len(name):
            parts.append(text((start + stop) / 2, top + tall / 2 + 4, name, "on-fill", "middle"))
        at += size
    if limit:
        parts += [line(across(limit), top - 6, across(limit), top + tall + 6, "level")]
        parts += [text(across(limit), top - 9, f"one full-size model: {quantity(limit)}", "level-name", "end")]
    return picture(named, width, top + tall + 12, *parts)
