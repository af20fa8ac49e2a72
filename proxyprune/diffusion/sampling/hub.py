"""Pipelines on the Hugging Face hub: the files of a repository that a pipeline needs, downloaded into the usual cache."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxyprune.diffusion.sampling.pipeline_folder import INDEX, TRAINED_WITH
from proxyprune.diffusion.sampling.pipeline_record import RECORD
from proxyprune.errors import InputError, StorageError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (INDEX, RECORD, "scheduler/*", f"{TRAINED_WITH}/*", "experts/*")
DOWNLOAD = ("cache_dir", "token", "local_files_only", "force_download")


def local_folder(name: str | os.PathLike[str], subfolder: str, revision: str | None, download: Mapping[str, Any]) -> Path:
    """Return the folder of a pipeline on this machine; download it if the name is a repository's id and no folder here.

    Args:
        name: A folder, or an id such as "org/name". A path object is always a folder.
        subfolder: Folder inside it, or "".
        revision: Branch, tag or commit of a repository; None is the default branch.
        download: Options for the download, of the names in `DOWNLOAD`.

    Raises:
        InputError: If an option has another name, or the subfolder leads out of the repository.
        StorageError: If the repository cannot be downloaded.
    """
    if unknown := sorted(set(download) - set(DOWNLOAD)):
        raise InputError(f"from_pretrained has no option {', '.join(unknown)}. For a download it takes {', '.join(DOWNLOAD)}.")
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise InputError(f"Expected a subfolder inside '{os.fspath(name)}', found {subfolder!r}.")
    place = Path(name).expanduser()
    if not isinstance(name, str) or place.exists() or not _ID.fullmatch(name):
        return (place / subfolder).resolve()
    return _downloaded(name, subfolder, revision, download) / subfolder


def _downloaded(name: str, subfolder: str, revision: str | None, download: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    inside = "" if not subfolder else f"{Path(subfolder).as_posix()}/"
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=[f"{inside}{pattern}" for pattern in _FILES], **download)
    except Exception as error:  # the client raises its own errors, those of its HTTP library, and ValueError
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        at = "" if revision is None else f" at revision {revision!r}"
        raise StorageError(
            f"'{name}' is not a local folder, and the hub returned no repository of this name{at}: {reason}. Check the name, the "
            "network, and for a private repository the token (`hf auth login`)."
        ) from error
    return Path(found)
