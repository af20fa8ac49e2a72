"""Phrases and beginnings that CONTRIBUTING.md bans do not come back: in docstrings, messages and pages."""

from __future__ import annotations

import ast
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
QUESTION = re.compile(r"(What|How|Where|When|Which|Who|Why|Whether|Is|Are|Does|Can)\b")
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


def test_no_docstring_begins_with_a_question():
    """A docstring names a thing, or says what a function does; strings below attributes count as docstrings."""
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}: {str(text.value).strip()[:100]}"
        for path in sorted((ROOT / "proxyprune").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for part in (getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) else [])
        if isinstance(part, ast.Expr) and isinstance(text := part.value, ast.Constant) and isinstance(text.value, str)
        if QUESTION.match(text.value.strip())
    ]
    assert not found, "Begin with a noun or a verb.\n" + "\n".join(found)
