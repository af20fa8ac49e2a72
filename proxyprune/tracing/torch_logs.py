"""torch's log of failures, which are reported as errors of this package or tried again in another way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOGS = ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def without_log_of_failures() -> Iterator[None]:
    """Silence what torch logs about an op that fails without data, which is a stack trace for each."""
    logs = [logging.getLogger(f"torch.{name}") for name in _LOGS]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled
