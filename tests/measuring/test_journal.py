"""Journals: every whole line survives, half a line is taken off, and what belongs to something else is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from proxyprune.errors import JournalError, StorageError
from proxyprune.measuring.journal import opened

HEADER = {"fingerprint": "abc", "target": 0.6}


def write(path: Path, *entries: dict) -> None:
    with opened(path, "search", HEADER, resume=True) as journal:
        for entry in entries:
            journal.append(entry)


def read(path: Path) -> list[dict]:
    with opened(path, "search", HEADER, resume=True) as journal:
        return [dict(entry) for entry in journal.entries]


def test_entries_come_back_in_order(tmp_path):
    """What was appended is read, across openings."""
    write(tmp_path / "j", {"a": 1}, {"a": 2})
    write(tmp_path / "j", {"a": 3})
    assert [entry["a"] for entry in read(tmp_path / "j")] == [1, 2, 3]


@given(st.integers(min_value=0))
def test_a_file_cut_off_anywhere_keeps_all_whole_lines(tmp_path_factory, cut):
    """Whatever byte a kill stopped at, the whole entries before it are kept and new ones can follow."""
    path = tmp_path_factory.mktemp("journal") / "j"
    write(path, {"a": 1}, {"text": "é\n"}, {"a": 3})
    content = path.read_bytes()
    cut %= len(content) + 1
    path.write_bytes(content[:cut])
    whole = max(0, content[:cut].count(b"\n") - 1)
    assert read(path) == [{"a": 1}, {"text": "é\n"}, {"a": 3}][:whole]
    write(path, {"a": 4})
    assert read(path)[whole:] == [{"a": 4}]


def test_the_repair_is_told(tmp_path):
    """The opener learns how many bytes were taken off."""
    write(tmp_path / "j", {"a": 1})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"half": tr')
    with opened(tmp_path / "j", "search", HEADER, resume=True) as journal:
        assert journal.repaired_bytes == 11
        assert len(journal.entries) == 1


def test_damage_before_the_last_line_is_an_error_and_changes_nothing(tmp_path):
    """A file whose middle does not parse was not left by a kill."""
    write(tmp_path / "j", {"a": 1}, {"a": 2})
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    damaged = lines[0] + b"{not json\n" + lines[2]
    (tmp_path / "j").write_bytes(damaged)
    with pytest.raises(JournalError, match="Line 2"):
        read(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == damaged


@pytest.mark.parametrize(
    ("kind", "header", "message"),
    [
        ("search", {**HEADER, "target": 0.4}, "target was 0.6, now 0.4"),
        ("search", {**HEADER, "more": 1}, "more was null, now 1"),
        ("comparison", HEADER, "not a journal of a comparison"),
    ],
)
def test_a_journal_of_something_else_is_refused(tmp_path, kind, header, message):
    """The message says what differs, and the file stays as it is."""
    write(tmp_path / "j", {"a": 1})
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(JournalError, match=message), opened(tmp_path / "j", kind, header, resume=True):
        pass
    assert (tmp_path / "j").read_bytes() == before


def test_entries_are_not_continued_unless_asked_for(tmp_path):
    """A second run that does not resume is told, instead of mixing its entries in."""
    write(tmp_path / "j", {"a": 1})
    with pytest.raises(JournalError, match="Resume it"), opened(tmp_path / "j", "search", HEADER, resume=False):
        pass


@pytest.mark.parametrize("content", [b"[1]\n", b'"text"\n', b'{"schema": 99, "kind": "search"}\n', b"\x80\x81\n{}\n"])
def test_other_files_are_refused(tmp_path, content):
    """A file of another sort is no journal."""
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError):
        read(tmp_path / "j")


def test_two_processes_do_not_share_a_journal(tmp_path):
    """The second one is refused while the first has it open."""
    pytest.importorskip("fcntl")
    program = "from proxyprune.measuring.journal import opened\n"
    program += f"with opened({str(tmp_path / 'j')!r}, 'search', {HEADER!r}, resume=True): pass"
    with opened(tmp_path / "j", "search", HEADER, resume=True):
        refused = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "in use by another process" in refused.stderr
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_folder_that_is_missing_is_a_storage_error(tmp_path):
    """So is a path that cannot be opened."""
    with pytest.raises(StorageError, match="cannot be opened"):
        read(tmp_path / "none" / "j")


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    """Infinity would make a line that other readers refuse."""
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "j", {"a": float("inf")})
    assert json.loads((tmp_path / "j").read_text().splitlines()[0])["kind"] == "search"
