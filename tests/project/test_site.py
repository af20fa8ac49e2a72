"""The documentation site as a reader gets it: it builds without a warning, asks nobody else for anything, and reads well in a browser."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import DESKTOP, PHONE, Browser, needs_browser

ROOT = Path(__file__).parents[2]
PAGES = (
    "index",
    "tutorials/prune-your-network",
    "how-to/score-with-an-llm",
    "reference/python",
    "design/planning",
    "benchmarks/compare-scorers",
)
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)
IMPORTED = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")
HARMLESS = re.compile(r"<link\b[^>]*\brel=[\"']?(?:canonical|prev|next|alternate)\b")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site; strict, so a broken link ends the build."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Yield the site behind a server on this machine."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing to say."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.driver.quit()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No script, style, font or image of any page lies on another host; links for the reader may lead there."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        foreign = [found.group() for found in LOADED.finditer(text) if not HARMLESS.match(found.group())]
        assert not foreign, (page.relative_to(site), foreign)
    for style in site.rglob("*.css"):
        assert not IMPORTED.search(style.read_text(encoding="utf-8")), style.relative_to(site)


def test_every_page_of_the_docs_is_in_the_site(site: Path) -> None:
    """A page that nobody links to is built all the same."""
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        assert (site / place.with_suffix(".html")).is_file(), place


@needs_browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("page", PAGES)
def test_pages_are_quiet_and_fit(browser: Browser, address: str, page: str, width: int) -> None:
    """No message on the console, no request to anybody else, nothing wider than the window."""
    browser.open(f"{address}{page}.html", width=width)
    assert browser.run("document.title")
    assert browser.console() == []
    assert [url for url in browser.requests() if not url.startswith((address, "data:", "blob:"))] == []
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


@needs_browser
def test_copying_a_console_block_leaves_the_prompt_out(browser: Browser, address: str) -> None:
    """What the button copies are the commands alone."""
    browser.open(f"{address}index.html", width=DESKTOP)
    code = "document.querySelector('.highlight .gp').closest('code')"
    copied = browser.run(f"({code}.setAttribute('data-md-copying', ''), {code}.innerText)")
    assert copied.strip().startswith("pip install")
    assert "$" not in copied


@needs_browser
def test_search_works_from_disk(browser: Browser, site: Path) -> None:
    """A word typed into the search finds pages, in a site that is read from disk; nothing is asked of another host."""
    browser.open(site / "index.html", width=DESKTOP)
    browser.driver.find_element("css selector", "[data-md-component='search-query']").send_keys("budget")
    found = "[...document.querySelectorAll('.md-search-result__item a')].map(link => link.href)"
    deadline = time.monotonic() + 600
    while not (links := browser.run(found)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(links) > 3
    assert all(link.startswith(site.resolve().as_uri()) for link in links)
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    assert browser.console() == []
