"""The garbage collector does not examine imported libraries again and again."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys
import proxyprune.cli
assert gc.get_threshold()[0] < 10_000, gc.get_threshold()
try:
    proxyprune.cli.main(["report", "--help"])
except SystemExit:
    print(gc.get_threshold()[0], gc.isenabled(), "torch" in sys.modules)
"""


def test_a_command_collects_less_often_and_an_import_changes_nothing() -> None:
    """A command raises the threshold before it imports anything heavy; importing the package leaves the caller's setting."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "50000 True False"
