"""The content of a saved network's folder, and its manifest; reading it needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxyprune.errors import StorageError
from proxyprune.support.checks import listed
from proxyprune.support.dataclass_json import from_plain, to_plain

SCHEMA = 1

PLAN, SURGERY, WEIGHTS, MANIFEST = "plan.json", "surgery.json", "model.safetensors", "manifest.json"
RANKING, GRAPH, STRUCTURE, REPORT = "ranking.json", "graph.txt", "graph.json", "report.json"
FILES = (PLAN, SURGERY, WEIGHTS, RANKING, GRAPH, STRUCTURE, REPORT, MANIFEST)
"""The files that `save` writes. Folders of earlier versions lack graph.json; loading does not need it."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """The facts that the other files are read with.

    Attributes:
        sha256: Hash of each file, by file name.
        structure: Shape of every parameter and buffer of the unpruned model, by name.
        shared: Further names of tensors that are stored once -> the name they are stored under.
        training: Whether the model was in training mode.
        exceptions: Modules in the other mode (such as frozen batch norms).
    """

    sha256: Mapping[str, str]
    structure: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, str]
    training: bool
    exceptions: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the schema number."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Read what `to_dict` wrote.

        Raises:
            StorageError: If the data is of another schema or malformed.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise StorageError(f"Expected a manifest with schema {SCHEMA}, found {found!r}. Save the network again.")
        return from_plain(cls, data, _malformed)


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        StorageError: If the folder is not a saved network.
    """
    path = folder / MANIFEST
    if not path.is_file():
        state = "it has no manifest.json" if folder.is_dir() else "it is not a folder" if folder.exists() else "it does not exist"
        interrupted = [str(other) for other in folder.parent.glob(f".{folder.name}.*.previous")]
        hint = f"A save was interrupted; rename '{interrupted[0]}' to get the earlier network back." if interrupted else "Check the path."
        raise StorageError(f"Expected a folder written by proxyprune at '{folder}', but {state}. {hint}")
    try:
        return Manifest.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise StorageError(f"'{path}' is truncated or was changed: {error}. Save the network again.") from error


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _malformed(problems: list[str]) -> StorageError:
    return StorageError(f"The manifest is malformed ({listed(problems, separator='; ')}). Save the network again.")
