"""Seeds that depend on what they are for, and on nothing else: not on the process, the platform, or the order of calls."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed for one purpose, made from the caller's seed.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\0".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
