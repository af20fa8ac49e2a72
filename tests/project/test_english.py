"""Phrases that CONTRIBUTING.md bans do not come back: in docstrings, messages and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED = {
    r"in earnest": "say what happens instead",
    r"the very (?!first|last|same\b.*only)\w": "leave 'very' out",
    r"whoever": "name the person or the code",
    r"(?:measured|accepted|it|interval|works) all the same": "in spite of that, or equal",
    r"(?:not|no|nor)\b[^.]{0,60}\bany more\b": "no longer",
    r"\b(?:is|are|was|be) told\b(?! to)": "gets, receives, is reported",
    r"to be had": "available",
    r"how-manieth": "index",
    r"it finds out from": "detected from",
}
FILES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "proxyprune").rglob("*.py")],
)


@pytest.mark.parametrize("phrase", BANNED)
def test_a_banned_phrase_is_nowhere(phrase):
    """The error names the places, and what to write."""
    pattern = re.compile(phrase, re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"Write instead: {BANNED[phrase]}.\n" + "\n".join(found)
