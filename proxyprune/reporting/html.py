"""From a page to one HTML file that needs nothing else: no script, no request, no style or picture from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from proxyprune.errors import StorageError
from proxyprune.reporting.compose import compose
from proxyprune.reporting.page import Page
from proxyprune.reporting.read.read_result import Result, read_result
from proxyprune.support.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SUFFIXES = (".html", ".htm")

_AFTER_DOTS = re.compile(r"(?<=[./])(?=[^\d\s.])")
_TEMPLATES = resources.files("proxyprune.reporting") / "templates"


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a result.

    Args:
        path: What a command of proxyprune wrote.
        out: The HTML file; `report.html` in a folder, or beside a file, when left out. An older report is replaced.

    Returns:
        The file.

    Raises:
        StorageError: If the result cannot be read, or the report not written.
        ResultFileError: If `path` holds no result.
    """
    path = Path(path)
    target = default_place(path) if out is None else check_place(out)
    write_page(target, render(read_result(path)))
    return target


def default_place(path: Path) -> Path:
    """Return the path of a result's report."""
    return path / "report.html" if path.is_dir() else path.with_suffix(".report.html")


def check_place(out: str | Path) -> Path:
    """Refuse a place that no report should be written to, before any work is done for it.

    Raises:
        StorageError: If it does not end in .html, or its folder is missing.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise StorageError(f"A report is an HTML file; '{out}' ends in '{out.suffix}'. Choose a name that ends in .html.")
    if out.is_dir() or not out.parent.is_dir():
        found = "it is a folder" if out.is_dir() else f"there is no folder '{out.parent}'"
        raise StorageError(f"The report cannot be written to '{out}': {found}. Choose another place.")
    return out


def render(result: Result) -> str:
    """Return the whole HTML page; the same for the same result."""
    return render_page(compose(result))


def render_page(page: Page) -> str:
    """Return a page of parts as HTML."""
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return _environment().get_template("page.html").render(page=page, style=style, policy=_policy(digest))


def _policy(digest: str) -> str:
    """Content security: the page's own style, pictures inside the page, and nothing else whatever a name may hold."""
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["own_style"] = Markup
    return environment


def _breakable(text: str) -> Markup:
    """Escaped, with a place to break a long dotted name after each dot that does not stand before a digit."""
    from markupsafe import Markup

    return Markup("<wbr>").join(_AFTER_DOTS.split(text))


def write_page(path: Path, text: str) -> None:
    """Write the page; a reader never sees half of it.

    Raises:
        StorageError: If it cannot be written.
    """
    write_text(path, text, advice="Choose another place with --out.")
