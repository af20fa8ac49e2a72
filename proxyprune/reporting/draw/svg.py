"""Small pieces of SVG as text: every value is escaped where it is put in, so that no name can become markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from proxyprune.support.wording import quantity

_LARGE = 1e5
"""From here on, ticks are written with a unit."""


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """One element. An attribute `class_` is written class, and `text_anchor` text-anchor; None leaves it out; floats are rounded."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None) -> Markup:
    """Return a line of text; `anchor` is "middle" or "end"."""
    return tag("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, rx: float | None = None, *children: Markup) -> Markup:
    """Return a rectangle; never of negative size."""
    return tag("rect", *children, x=x, y=y, width=max(0.0, width), height=max(0.0, height), rx=rx, class_=class_)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Return connected points."""
    return tag("polyline", points=" ".join(f"{_plain(x)},{_plain(y)}" for x, y in points), class_=class_)


@dataclass(frozen=True)
class Named:
    """The name of a drawing, for those who do not see it too.

    Attributes:
        identity: Unique on the page; ids are made from it.
        title: What it is.
        description: What it shows, in words.
    """

    identity: str
    title: str
    description: str


def picture(named: Named, width: float, height: float, *children: Markup) -> Markup:
    """Return a whole drawing, with its title and description; width and height in pixels, scaled by the page."""
    return tag(
        "svg",
        tag("title", named.title, id=f"{named.identity}-title"),
        tag("desc", named.description, id=f"{named.identity}-desc"),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{named.identity}-title {named.identity}-desc",
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        width=width,
        height=height,
    )


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels, with round ticks.

    Attributes:
        low: Value at `start`.
        high: Value at `stop`.
        start: Pixel.
        stop: Pixel.
    """

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float, *, zero: bool = False) -> Scale:
        """Return a scale that has room for all values; `zero` begins it at 0."""
        low, high = (0.0 if zero else min(values)), max(values)
        margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
        return cls(low if zero else low - margin, high + margin, start, stop)

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside, at most so many."""
        raw = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Return a tick's label: short, without trailing zeros; large amounts as `30 M`."""
    return quantity(value) if value >= _LARGE else f"{value:.6g}"


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
