"""The versions that a result was made with, for its provenance."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

DECIDING = ("proxyprune", "torch", "numpy", "scipy")
"""Packages whose version may change a figure."""


def made_with() -> dict[str, str]:
    """Package -> version, and Python's own; nothing about the machine or the hour, so that the same result stays the same file."""
    found = {"python": platform.python_version()}
    for name in DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            continue
    return found
