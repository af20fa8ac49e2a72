"""Files of cost tables: where they are, and how one is read. Needs no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1


def times_folder() -> Path:
    """Return the folder of all tables: "proxyprune/times" in XDG_CACHE_HOME, or in the system's usual place for caches."""
    usual = os.environ.get("LOCALAPPDATA", "~/AppData/Local") if os.name == "nt" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or usual).expanduser() / "proxyprune" / "times"


def read_table(path: Path) -> dict[str, Any] | None:
    """Return the content of a table's file; None if it is missing, damaged, or of another schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    parts = [content.get(name) for name in ("machine", "nanoseconds", "networks")]
    whole = all(isinstance(part, dict) for part in parts)
    return content if whole and all(isinstance(value, int) for part in parts[1:] for value in (part or {}).values()) else None
