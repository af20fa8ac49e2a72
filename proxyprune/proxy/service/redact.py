"""Take secrets out of text before anybody can read it: messages, logs and caches all pass through here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MASK = "[redacted]"
_SHORTEST_SECRET = 4  # masking every occurrence of a shorter string would destroy the text and protect nothing

_PATTERNS = (
    re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_*\-]{6,}"),  # keys of the hosted services, also ones that a message shows in part
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{4,}"),
    re.compile(r"(?i)(authorization|x-api-key|api[-_]key)([\"']?\s*[:=]\s*[\"']?)[^\s\"',}]{4,}"),
    re.compile(r"(?<=://)[^/\s@\"']+@"),  # user:password in a URL
)
_REPLACEMENTS = (MASK, rf"\1 {MASK}", rf"\1\2{MASK}", f"{MASK}@")


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the given secrets and without anything that looks like a key."""
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    for pattern, replacement in zip(_PATTERNS, _REPLACEMENTS, strict=True):
        text = pattern.sub(replacement, text)
    return text


def redacted_json(value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return the same for plain JSON values, keys included."""
    held = tuple(secrets)
    if isinstance(value, str):
        return redacted(value, held)
    if isinstance(value, dict):
        return {redacted(str(key), held): redacted_json(item, held) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_json(item, held) for item in value]
    return value
