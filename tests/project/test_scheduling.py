"""Tests that share something run on one worker, and the longest scopes start first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def shared(pytestconfig: pytest.Config) -> Any:
    """Return the conftest of all tests."""
    return pytestconfig.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))


def test_scopes_are_files_networks_or_single_tests(shared: Any) -> None:
    """A file with a fixture of its own is one scope; elsewhere the first parameter counts, and else the test alone."""
    assert {shared._scope_of(f"tests/project/test_site.py::{test}") for test in ("a[index-390]", "b")} == {"tests/project/test_site.py"}
    assert (
        shared._scope_of("tests/api/test_zoo.py::test_a[swin-0.6]") == shared._scope_of("tests/api/test_golden.py::test_b[swin]") == "swin"
    )
    assert shared._scope_of("tests/api/test_zoo.py::test_a") == "tests/api/test_zoo.py::test_a"


def test_seconds_of_a_function_are_divided_among_its_cases(shared: Any) -> None:
    """A scope weighs the sum over its cases, so that one network with several slow tests starts before a single one."""
    path = "tests/api/test_zoo.py::"
    tests = [
        f"{path}test_a[swin-0.6]",
        f"{path}test_a[swin-0.8]",
        f"{path}test_a[c2f-0.6]",
        f"{path}test_a[c2f-0.8]",
        f"{path}test_b[c2f]",
        f"{path}test_c",
    ]
    seconds = shared._seconds_of_scopes(tests, {f"{path}test_a": 8.0, f"{path}test_b": 3.0})
    assert seconds == {"swin": 4.0, "c2f": 7.0, f"{path}test_c": 0.0}
