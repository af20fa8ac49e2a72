"""Records of what training measures: JSON lines beside each stage, and any tracker of accelerate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from proxyprune.diffusion.run_folder import RunFolder, StageFolder
from proxyprune.errors import StorageError
from proxyprune.support.files import write_text


class JsonLines(GeneralTracker):  # type: ignore[misc]  # accelerate ships no types
    """One line of JSON for each logged step, in FOLDER/STAGE/log.jsonl; values arrive under "STAGE/name"."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.run = run

    @property
    def tracker(self) -> Path:
        """The folder."""
        return self.run.path

    @on_main_process  # type: ignore[untyped-decorator]  # accelerate has no types
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Store no configuration: it lies beside the logs already."""

    @on_main_process  # type: ignore[untyped-decorator]  # accelerate has no types
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append a line."""
        lines: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            stage, _, name = key.partition("/")
            lines.setdefault(stage, {"step": step})[name] = value
        for stage, line in lines.items():
            path = self.run.stage(stage).log
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise StorageError(f"The log {path} cannot be written: {error.strerror or error}. Check space and permissions.") from error


def rewind(folder: Path, step: int) -> None:
    """Drop the lines after a step: a resumed run writes them again."""
    path = StageFolder(folder).log
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the run was killed
    write_text(path, "".join(f"{line}\n" for line in kept))
