"""What the benchmark scripts share: where results go, and what they say about the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("proxyprune", "torch", "torch-pruning", "diffusers", "transformers", "numpy")


def environment() -> dict[str, Any]:
    """Machine, versions and commit, for every result file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "machine": {"processor": platform.machine(), "vectors": _vectors(), "cores": os.cpu_count(), "system": platform.system()},
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip() or None,
    }


def _vectors() -> str | None:
    """Return what a kernel may compute at a time on this processor, such as AVX512; it decides which widths are fast."""
    try:
        import torch
    except ImportError:
        return None
    return torch.backends.cpu.get_cpu_capability()


def save(name: str, content: Mapping[str, Any]) -> Path:
    """Write results/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    Console().print(f"wrote {path.relative_to(RESULTS.parent.parent)}")
    return path


def print_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a mapping; floats with three digits, integers with separators. Nothing is cut off: in a log, too, each row is one line."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if rows and isinstance(rows[0].get(column), int | float) else "left")
    for row in rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    natural = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, natural)).print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
