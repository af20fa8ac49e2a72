"""Reports, opened in a real browser: nothing in the console, no request, no sideways scrolling, and dark where the system is dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import DESKTOP, PHONE, Browser, needs_browser
from results import RESULTS

from proxyprune.reporting import write_report

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the report of every kind of result."""
    folder = tmp_path_factory.mktemp("reports")
    return {name: write_report(make(folder), folder / f"{name}-report.html") for name, make in RESULTS.items()}


@pytest.mark.parametrize("name", RESULTS)
def test_nothing_but_the_file_itself_is_asked_for(browser, pages, name):
    """The browser finds nothing to complain about, and asks for the file and for nothing else."""
    page = pages[name]
    browser.open(page)
    assert browser.run("document.querySelector('h1').innerText.length") > 0
    assert browser.console() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", RESULTS)
def test_no_sideways_scrolling(browser, pages, name, width):
    """The page is never wider than the window; what is wide scrolls in its own frame."""
    browser.open(pages[name], width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelector('main').getBoundingClientRect().right") <= width


def test_wide_drawings_scroll_in_their_frame(browser, pages):
    """On a phone the drawing of a long network is wider than its frame, which a keyboard can reach and move."""
    browser.open(pages["score-long"], width=PHONE)
    assert browser.run("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.drawing'))")
    assert browser.run("document.querySelector('.drawing').tabIndex") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", RESULTS)
def test_text_can_be_read_on_what_it_stands_on(browser, pages, name, dark):
    """Light and dark, every colour of text has a contrast of 4.5 to the ground behind it, as WCAG AA asks for."""
    browser.open(pages[name], dark=dark)
    poor = browser.run(_POOR_CONTRAST)
    assert poor == []


def test_dark_is_dark_and_print_is_light(browser, pages):
    """The ground follows the system's scheme, and paper stays white."""
    grounds = {}
    for scheme, media in (("light", ""), ("dark", ""), ("dark", "print")):
        browser.open(pages["network"], dark=scheme == "dark", media=media)
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        grounds[scheme, media] = sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    assert grounds["light", ""] > 700
    assert grounds["dark", ""] < 100
    assert grounds["dark", "print"] == 3 * 255


def test_print_shows_long_tables_whole(browser, pages):
    """On paper nothing hides in a frame that scrolls."""
    browser.open(pages["score-long"])
    assert browser.run("(e => e.scrollHeight > e.clientHeight)(document.querySelector('.long'))")
    browser.open(pages["score-long"], media="print")
    assert not browser.run("(e => e.scrollHeight > e.clientHeight + 1)(document.querySelector('.long'))")


def test_names_stay_text(browser, pages):
    """A block that is named like a script is shown with that name, and nothing of it runs or becomes an element."""
    browser.open(pages["hostile"])
    assert browser.run("document.scripts.length") == 0
    assert browser.run("window.stolen") is None
    assert browser.run("document.querySelectorAll('img, iframe, object').length") == 0
    assert "<script>window.stolen=1</script>" in browser.run("document.body.innerText")


def test_blocks_of_the_map_lead_to_their_rows(browser, pages):
    """A click on a block of the map marks its row in the table."""
    browser.open(pages["network"])
    browser.driver.execute_script("document.querySelector('#map-body a').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.run("document.querySelector('tr:target') !== null")


# Every element with text of its own against the nearest ground below it. Text in drawings stands on shapes, whose colours
# test_reporting.py holds against each other.
_POOR_CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(`${e.tagName} ${e.className}: ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()"""
