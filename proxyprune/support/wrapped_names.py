"""Names of parameters under a wrapper: `module.`, `_orig_mod.` and others, found by structure."""

from __future__ import annotations

from collections.abc import Collection

_TRANSPARENT = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Children in which torch's wrappers hold a network; no other module has children of these names."""


def unwrapped(name: str) -> str:
    """Return a name without the children that torch's compile, FSDP and checkpoint wrappers insert."""
    if not any(part in name for part in _TRANSPARENT):
        return name
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def wrapper_prefix(names: Collection[str], known: Collection[str]) -> str | None:
    """Return the prefix that, put before every known name, gives one of `names`: "" when they fit as they are, None when there is none."""
    if not known or all(name in names for name in known):
        return ""
    first = min(known)
    prefixes = sorted({name.removesuffix(first) for name in names if name.endswith(f".{first}")}, key=len)
    return next((prefix for prefix in prefixes if all(f"{prefix}{name}" in names for name in known)), None)
