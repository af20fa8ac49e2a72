"""Numbers as text for a reader."""

from __future__ import annotations


def quantity(amount: float) -> str:
    """`3.4 G` for 3,400,000,000."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}" if amount < 999.5 * size else f"{amount / size:,.0f} {unit}"
    return f"{amount:g}"


def share(part: float, whole: float) -> str:
    """`61.5 %`; nothing when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def tenths(value: float) -> str:
    """`-10.3`; never `-0.0`."""
    return f"{round(value, 1) + 0.0:.1f}"


def counted(number: int, what: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def figure(value: float | None, digits: int = 4) -> str:
    """Return a measured value; a dash when there is none."""
    return "–" if value is None else f"{value:.{digits}g}"


def seconds(value: float | None) -> str:
    """`1.2 s`, `3.4 ms`, `2 min 5 s`."""
    if value is None:
        return "–"
    if value >= 120:
        return f"{int(value // 60)} min {value % 60:.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
