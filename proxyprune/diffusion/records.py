"""Reading of records and weights, with errors that name the file and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from proxyprune.errors import StorageError


def read_json(path: Path, advice: str = "Remove it to do that stage again.") -> Any:
    """Read JSON; None when there is no such file.

    Raises:
        StorageError: If it is there and cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}. {advice}") from error


def read_record(path: Path, *needed: str) -> dict[str, Any] | None:
    """Return the record of a finished stage; None when there is none.

    Args:
        path: The JSON file.
        needed: Names that it must hold.

    Raises:
        StorageError: If it cannot be read, or lacks one of them.
    """
    found = read_json(path)
    if found is None:
        return None
    if not isinstance(found, dict) or (missing := [name for name in needed if name not in found]):
        lacking = ", ".join(missing) if isinstance(found, dict) else "everything"
        raise StorageError(f"{path} is damaged: it lacks {lacking}. Remove it to do that stage again.")
    return found


def read_weights(path: Path, advice: str = "Remove result.json beside it to do that stage again.") -> dict[str, Tensor]:
    """Weights of a finished stage.

    Args:
        path: A safetensors file.
        advice: What to do when it is gone.

    Raises:
        StorageError: If the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StorageError(f"{path} cannot be read ({type(error).__name__}: {error}). {advice}") from error
