"""Reports: one self-contained HTML page for any result.

Reading finds out what a path holds, composing turns it into parts (facts, tables, drawings, remarks), rendering makes HTML of it. Names
in a result belong to whoever made it: templates and drawings escape them, and the page allows no script at all.
"""

from __future__ import annotations

from proxyprune.reporting.reading import Result, read_result
from proxyprune.reporting.rendering import render, write_report

__all__ = ["Result", "read_result", "render", "write_report"]
