"""Files of tokenizers and processors, which lie beside the weights of a network: in a folder, or in the local cache of the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from proxyprune.errors import StorageError

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
    "*processor_config.json",
)
"""Patterns of their names."""


def add_tokenizer(source: Any, folder: Path) -> None:
    """Add the files of a tokenizer or processor to a folder.

    Args:
        source: Anything with `save_pretrained`, a folder, or a hub id that is in the local cache.
        folder: Where to.

    Raises:
        StorageError: If there is no such folder, or no such file in the cache.
    """
    if hasattr(source, "save_pretrained"):
        source.save_pretrained(folder)
        return
    found = _folder_of(str(source), None)
    if found is None:
        raise StorageError(
            f"Cannot copy the files of a tokenizer from '{source}': it is neither a folder nor a hub id in the local cache. "
            "Load the tokenizer once (AutoTokenizer.from_pretrained), or pass the tokenizer itself."
        )
    copy_tokenizer_files(found, folder)


def add_files_beside(name: str, revision: str | None, folder: Path) -> None:
    """Add the files beside the weights that a network was loaded from; nothing if these are not on this machine.

    Args:
        name: Folder or hub id; may be empty.
        revision: Commit of the hub's repository, if known.
        folder: Where to.
    """
    found = _folder_of(name, revision) if name else None
    if found is not None:
        copy_tokenizer_files(found, folder)


def copy_tokenizer_files(source: Path, folder: Path) -> None:
    """Copy the files of tokenizers and processors from one folder to another; files that are there stay."""
    for path in sorted({path for pattern in TOKENIZER_FILES for path in source.glob(pattern)}):
        if path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _folder_of(name: str, revision: str | None) -> Path | None:
    """Return a folder, or the snapshot of a hub id in the local cache; None if there is neither. The network is not used."""
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:  # then nothing was loaded from the hub either
        return None
    for file in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "config.json"):
        try:
            cached = try_to_load_from_cache(name, file, revision=revision)
        except HFValidationError:  # a path that is gone
            return None
        if isinstance(cached, str):
            return Path(cached).parent
    return None
