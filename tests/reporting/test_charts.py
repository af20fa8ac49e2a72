"""Charts of a report: what is drawn for few points, and how large numbers are written."""

from __future__ import annotations

import pytest

from proxyprune.reporting.draw.charts import Series, line_chart
from proxyprune.reporting.draw.svg import Named, tick_text
from proxyprune.support.wording import tenths


@pytest.mark.parametrize(("points", "dots"), [([(1.0, 2.0)], 1), ([(1.0, 2.0), (2.0, 3.0)], 0)])
def test_a_line_with_a_single_point_is_a_dot(points, dots):
    """A line needs two points, so one point is drawn as a dot in the colour of the line."""
    drawn = line_chart(Named("chart", "Loss", "loss"), [Series("expert 1", points, "line-1")], ("step", "loss"))
    assert drawn.count("<circle") == dots
    assert ('class="dot fill-1 line-1"' in drawn) == bool(dots)
    assert drawn.count("<polyline") + drawn.count("<path") == 1 - dots


@pytest.mark.parametrize(("value", "text"), [(3e7, "30 M"), (1.5e9, "1.5 G"), (12345.0, "12345"), (0.5, "0.5"), (-50.0, "-50")])
def test_large_ticks_have_a_unit(value, text):
    """From a hundred thousand on, a tick has a unit instead of an exponent."""
    assert tick_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(-0.04, "0.0"), (0.0, "0.0"), (-10.26, "-10.3"), (9.96, "10.0")])
def test_tenths_are_never_negative_zero(value, text):
    """A value that rounds to zero has no sign."""
    assert tenths(value) == text
