"""A session's folder: the log of calls, and the rankings and plans that the answers name.

session.jsonl     the log; its first line says what the session belongs to, every other line is one call with its answer
rankings/r1.json  a ranking, with its channel scores
plans/p1.json     a plan
networks/NAME/    a saved network
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxyprune.errors import InputError, JournalError, StorageError
from proxyprune.measuring.journal import SCHEMA
from proxyprune.planning.plan import PrunePlan
from proxyprune.saving.destination import resolved
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.files import write_json, write_text

KIND = "assistant session"
LOG, RANKINGS, PLANS, NETWORKS = "session.jsonl", "rankings", "plans", "networks"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class SessionFolder:
    """The one folder that a session writes to.

    Attributes:
        path: Its real path.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> SessionFolder:
        """Make the folder if it is missing.

        Raises:
            StorageError: If it cannot be made, or holds files but no session.
        """
        folder = resolved(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            foreign = not (folder / LOG).exists() and any(folder.iterdir())
        except OSError as error:
            raise StorageError(f"The workspace '{path}' cannot be created: {error.strerror}. Choose another folder.") from error
        if foreign:
            raise StorageError(f"The workspace '{path}' holds files but no session. Choose a new or empty folder.")
        return cls(folder)

    @property
    def log(self) -> Path:
        """The log of calls."""
        return self.path / LOG

    def network(self, name: str) -> Path:
        """Return the folder for a saved network.

        Raises:
            InputError: If the name is not a plain one, or the folder would lie outside the workspace.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"A network's name has up to 64 letters, digits, '-' and '_' and begins with a letter or digit; found {name!r}."
            )
        folder = self._inside(Path(NETWORKS) / name)
        if folder.exists():
            raise InputError(f"A network named {name!r} is in the workspace already. Choose another name.")
        return folder

    def write_ranking(self, name: str, ranking: Ranking) -> None:
        """Keep a ranking."""
        write_json(self._inside(Path(RANKINGS) / f"{name}.json"), ranking.to_dict())

    def ranking(self, name: str) -> Ranking:
        """Read a ranking.

        Raises:
            JournalError: If its file is missing or damaged.
        """
        return Ranking.from_dict(self._read(Path(RANKINGS) / f"{name}.json"))

    def write_plan(self, name: str, plan: PrunePlan) -> None:
        """Keep a plan."""
        write_text(self._inside(Path(PLANS) / f"{name}.json"), plan.to_text())

    def plan(self, name: str) -> PrunePlan:
        """Read a plan.

        Raises:
            JournalError: If its file is missing or damaged.
        """
        return PrunePlan.from_dict(self._read(Path(PLANS) / f"{name}.json"))

    def _inside(self, place: Path) -> Path:
        """Return a path in the workspace; links that lead out of it are rejected."""
        path = resolved(self.path / place)
        if not path.is_relative_to(self.path):
            raise StorageError(f"'{place}' leads out of the workspace through a link. Remove the link.")
        return path

    def _read(self, place: Path) -> dict[str, Any]:
        try:
            found = json.loads(self._inside(place).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JournalError(f"'{place}' of the session cannot be read ({error}). Restore it, or choose another workspace.") from error
        if not isinstance(found, dict):
            raise JournalError(f"'{place}' of the session holds no object. Restore it, or choose another workspace.")
        return found


def recorded_calls(folder: str | Path) -> tuple[Mapping[str, Any], ...]:
    """Return the calls of a session's log, oldest first; half a last line, left by a kill, is left out.

    Raises:
        StorageError: If there is no log.
        JournalError: If it is damaged, or of another kind.
    """
    path = resolved(folder) / LOG
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"'{folder}' holds no session: {LOG} cannot be read ({error.strerror}). Name a session's folder.") from error
    lines: list[dict[str, Any]] = []
    texts = content[: content.rfind("\n") + 1].splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise JournalError(f"Line {number} of '{path}' is not JSON ({error}). Restore the file.") from error
    if not lines or lines[0].get("kind") != KIND or lines[0].get("schema") != SCHEMA:
        raise JournalError(f"'{path}' is not a log of an {KIND} (schema {SCHEMA}). Name a session's folder.")
    return tuple(line for line in lines if line.get("what") == "call")
