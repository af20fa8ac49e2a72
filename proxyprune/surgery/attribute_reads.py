"""Record which attributes of a plain object, such as a config that many modules share, are read.

A read that is not recorded costs proposals, never correctness: each change of an attribute is confirmed by the pruned forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_WHOLE = frozenset({"__dict__", "__getstate__", "__reduce__", "__reduce_ex__"})
"""Attributes through which code, for example a copy, reads all others."""


@dataclass
class ReadsInside:
    """Attributes of one object that were read.

    Attributes:
        holder: The object; kept alive, so that its id is not used again.
        names: Names of the attributes.
        everything: True if any attribute may have been read: code read the whole `__dict__`, or reads cannot be recorded.
    """

    holder: Any = None
    names: set[str] = field(default_factory=set)
    everything: bool = False

    def may_read(self, name: str) -> bool:
        """Return False for an attribute that was not read."""
        return self.everything or name in self.names


@contextlib.contextmanager
def reads_of(holder: Any) -> Iterator[ReadsInside]:
    """Record the reads of an object in the body; its class is restored afterwards.

    A class may look up another name than the requested one, as configs of transformers do. Reads are therefore recorded both before the
    object's own lookup and in the lookup of `object`.
    """
    kind = type(holder)
    lookup: Any = kind.__getattribute__
    reads = ReadsInside(holder)

    def requested(self: Any, name: str) -> Any:
        reads.names.add(name)
        reads.everything |= name in _WHOLE
        return lookup(self, name)

    class Resolving:
        """The last class before `object`."""

        def __getattribute__(self, name: str) -> Any:
            reads.names.add(name)
            return object.__getattribute__(self, name)

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}  # libraries look classes up by them
    try:
        last = (Resolving,) if lookup is not object.__getattribute__ else ()
        object.__setattr__(holder, "__class__", type(kind.__name__, (kind, *last), {"__getattribute__": requested} | names))
    except Exception:  # noqa: BLE001  a class that cannot be derived from, or not be replaced, raises what its author chose
        reads.everything = True
        yield reads
        return
    try:
        yield reads
    finally:
        object.__setattr__(holder, "__class__", kind)
