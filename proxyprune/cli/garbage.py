"""Python's garbage collector, set for a process that imports large libraries and runs one command."""

from __future__ import annotations

import atexit
import gc
from functools import cache

THRESHOLDS = (50_000, 5, 5)
"""New objects before a collection, and collections before one of an older generation."""


@cache
def collect_less_often() -> None:
    """Start collections after more new objects, and skip the one at the end of the process.

    Imports of torch, transformers and diffusers create many objects that all stay. With Python's default thresholds, the collector
    examines them again and again while they are imported.
    """
    gc.set_threshold(*THRESHOLDS)
    atexit.register(gc.freeze)
