"""A plan is a value: it survives the file, notices every change to it, and knows which structure it belongs to."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from handbuilt import Layer, chain, parallel, ranking_of
from hypothesis import given, strategies as st

from proxyprune import PrunePlan, make_plan
from proxyprune.errors import PlanFormatError, PlanMismatchError, StorageError
from proxyprune.support.ranges import from_ranges, to_ranges

GRAPH = chain([Layer(32), Layer(24, channels=4, step=2), Layer(16, step=4, bins=4)])
PLAN = make_plan(GRAPH, ranking_of(GRAPH, [0.9, 0.2, 0.5, 0.5]), 0.5, keep=("fc3.weight",))


@given(st.sets(st.integers(0, 400), min_size=1))
def test_ranges_round_trip(indices: set[int]) -> None:
    """Any ascending set of indices survives its text form."""
    ascending = tuple(sorted(indices))
    assert from_ranges(to_ranges(ascending), limit=401) == ascending


def test_ranges_are_compact() -> None:
    """Runs are written as first-last, single indices alone."""
    assert to_ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


@pytest.mark.parametrize("text", ["", "1-", "3,2", "5-4", "0-2,2", "a", "-1", "0,,1", "0-99999999999", "4", 7, None])
def test_malformed_ranges_are_refused(text: Any) -> None:
    """Empty, descending, overlapping, endless or foreign ranges raise, before anything is expanded."""
    with pytest.raises(ValueError, match=r"expected indices|not ascending|out of range"):
        from_ranges(text, limit=4)


@pytest.mark.parametrize("text", ["3,2", "99999", None])
def test_a_plan_with_malformed_ranges_names_the_group(text: Any) -> None:
    """A plan file whose kept atoms do not parse raises an error that names the group."""
    content = PLAN.to_dict()
    group, entry = next(iter(content["groups"].items()))
    content["groups"] = content["groups"] | {group: {**entry, "kept": text}}
    with pytest.raises(PlanFormatError, match=f"group '{group}'"):
        PrunePlan.from_dict(content)


def test_a_plan_round_trips_through_dict_and_file(tmp_path: Path) -> None:
    """to_dict and to_json lose nothing."""
    assert PLAN.kept
    assert PrunePlan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN
    PLAN.to_json(tmp_path / "plan.json")
    assert PrunePlan.from_json(tmp_path / "plan.json") == PLAN
    assert PrunePlan.from_json(tmp_path / "plan.json").to_text() == PLAN.to_text()


def test_a_plan_can_be_sent_to_other_processes() -> None:
    """Pickling for a broadcast, copying and hashing work on the frozen value."""
    assert pickle.loads(pickle.dumps(PLAN)) == copy.deepcopy(PLAN) == PLAN
    assert hash(PLAN) == hash(copy.deepcopy(PLAN))
    with pytest.raises(FrozenInstanceError):
        PLAN.macs = 0  # type: ignore[misc]


def test_the_file_has_one_group_a_line() -> None:
    """A plan can be diffed: each cut group stands on a line of its own."""
    lines = PLAN.to_text().splitlines()
    for group in PLAN.kept:
        assert sum(json.dumps(group) in line for line in lines) == 1
    assert max(len(line) for line in lines) < 200


@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    """A file with one character replaced or removed either says the same or raises PlanFormatError."""
    text = PLAN.to_text()
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from(["", "0", "7", "-", ",", '"', "}", "x", " "]))
    changed = text[:position] + character + text[position + 1 :]
    try:
        found = PrunePlan.from_text(changed)
    except PlanFormatError:
        return
    assert found == PLAN


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    """A plan cut short raises and names the file."""
    path = tmp_path / "plan.json"
    text = PLAN.to_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(PlanFormatError, match=r"plan\.json"):
        PrunePlan.from_json(path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text raise PlanFormatError."""
    path = tmp_path / "plan.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanFormatError, match="UTF-8"):
        PrunePlan.from_json(path)


def test_missing_and_unwritable_files_are_storage_errors(tmp_path: Path) -> None:
    """Reading nothing and writing into nowhere raise StorageError, which is an OSError."""
    with pytest.raises(StorageError):
        PrunePlan.from_json(tmp_path / "none.json")
    with pytest.raises(OSError, match="Cannot write"):
        PLAN.to_json(tmp_path / "missing" / "plan.json")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema", 2, "schema 1"),
        ("schema", True, "schema 1"),
        ("fingerprint", "abc", "64 hexadecimal"),
        ("mode", "sideways", "'mode'"),
        ("metric", "flops", "'metric'"),
        ("target", None, "'target'"),
        ("macs", 1.5, "whole numbers"),
        ("macs", -1, "whole numbers"),
        ("macs", 10**12, "macs <= target_macs"),
        ("seed", "0", "'seed'"),
        ("removed_blocks", "fc0", "must be a list"),
        ("removed_blocks", ["fc0", "fc0"], "twice"),
        ("notes", [3], "strings"),
        ("options", [], "'options'"),
        ("groups", [], "'groups'"),
        ("groups", {"g": 3}, "width and kept"),
        ("groups", {"g": {"width": [4], "kept": "0"}}, "before, after"),
        ("groups", {"g": {"width": [4, 4], "kept": "0-3"}}, "must shrink"),
        ("groups", {"g": {"width": [4, 3], "kept": "0-1"}}, "do not make"),
        ("groups", {"g": {"width": [8, 4], "kept": "0,7"}}, "do not make"),
    ],
)
def test_every_field_is_validated(key: str, value: Any, says: str) -> None:
    """A wrong value in any field is named in the message."""
    with pytest.raises(PlanFormatError, match=says):
        PrunePlan.from_dict(PLAN.to_dict() | {key: value})


def test_unknown_and_missing_keys_are_refused() -> None:
    """A key too many or too few raises and is named."""
    with pytest.raises(PlanFormatError, match="extra"):
        PrunePlan.from_dict(PLAN.to_dict() | {"extra": 1})
    content = PLAN.to_dict()
    del content["scorer"]
    with pytest.raises(PlanFormatError, match="scorer"):
        PrunePlan.from_dict(content)


def test_a_valid_change_by_hand_is_noticed() -> None:
    """Moving one kept atom keeps every field well formed, and is caught by the hash."""
    content = PLAN.to_dict()
    group, entry = next((group, entry) for group, entry in content["groups"].items() if entry["kept"].startswith("0-"))
    atoms = list(PLAN.kept[group])
    atoms[-1] += 1
    content["groups"][group] = {"width": entry["width"], "kept": to_ranges(atoms)}
    with pytest.raises(PlanFormatError, match="changed after it was made"):
        PrunePlan.from_dict(content)


def test_a_plan_fits_its_own_graph() -> None:
    """The check passes, and atoms counts what is kept in the order of the cost model."""
    PLAN.check(GRAPH)
    assert GRAPH.cost.macs(PLAN.atoms(GRAPH)) == PLAN.macs
    assert PLAN.atoms(GRAPH).dtype == "int64"


def test_a_plan_for_another_structure_is_refused() -> None:
    """The message says what differs: sizes of the groups and totals, or groups that are missing."""
    with pytest.raises(PlanMismatchError, match=r"'fc0\.weight:0' from 32 to \d+ channels, here it has 40"):
        PLAN.check(chain([Layer(40), Layer(24, channels=4, step=2), Layer(16, step=4, bins=4)]))
    with pytest.raises(PlanMismatchError, match="missing here"):
        PLAN.check(parallel(3))
    with pytest.raises(PlanMismatchError, match="elsewhere"):
        replace(PLAN, fingerprint="0" * 64).check(GRAPH)


def test_atoms_that_break_steps_or_bins_are_refused() -> None:
    """The same fingerprint does not save a plan that leaves unequal bins or half a step."""
    bins = make_plan(GRAPH, ranking_of(GRAPH), 0.4)
    kept = bins.kept["fc2.weight:0"]
    moved = tuple(sorted(set(range(len(kept)))))  # as many, but all from the first bins
    with pytest.raises(PlanMismatchError, match="steps"):
        replace(bins, kept={**bins.kept, "fc2.weight:0": moved}).check(GRAPH)


def test_a_removed_block_must_be_removable() -> None:
    """Removing a stem, or a block that is not there, is refused."""
    with pytest.raises(PlanMismatchError, match="cannot be removed"):
        replace(PLAN, removed_blocks=("fc0",)).check(GRAPH)
    with pytest.raises(PlanMismatchError, match="missing here"):
        replace(PLAN, removed_blocks=("nowhere",)).check(GRAPH)


def test_reading_plans_needs_no_torch() -> None:
    """Plans can be made and read where torch is not wanted."""
    code = "import sys, proxyprune.planning.plan, proxyprune.planning.planner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
