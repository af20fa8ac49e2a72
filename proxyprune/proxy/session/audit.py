"""The audit log: one JSON line for every attempt, failures included, appended and never rewritten."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxyprune.errors import StorageError
from proxyprune.proxy.service.redact import redacted_json


@dataclass(frozen=True)
class Audit:
    """The place where attempts are logged.

    Attributes:
        path: The file; None logs nothing.
        secrets: What must not appear in it, read anew for every line.
    """

    path: Path | None
    secrets: Callable[[], tuple[str, ...]] = field(default=tuple, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def write(self, event: str, **content: Any) -> None:
        """Append one line.

        Raises:
            StorageError: If the file cannot be written.
        """
        if self.path is None:
            return
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **content}
        line = json.dumps(redacted_json(entry, self.secrets()), ensure_ascii=True) + "\n"
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(handle, line.encode())
                finally:
                    os.close(handle)
        except OSError as error:
            raise StorageError(f"The audit log {self.path} cannot be written: {error}. Choose a writable place as audit.") from error
